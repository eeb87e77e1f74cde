from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import httpx
import pytest

from tokentape.simulator import Simulator

if TYPE_CHECKING:
    from tokentape.script import Script

StartSimulator = Callable[..., Awaitable[Simulator]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
async def start_simulator() -> AsyncIterator[StartSimulator]:
    """Starts simulators that stop with the test."""
    async with AsyncExitStack() as stack:

        async def start(
            defaults: Script | None = None, *, models: tuple[str, ...] = ("m",), api_key: str | None = None
        ) -> Simulator:
            return await stack.enter_async_context(Simulator(defaults, models=models, api_key=api_key))

        yield start


@pytest.fixture
async def simulator(start_simulator: StartSimulator) -> Simulator:
    """One with the plain defaults."""
    return await start_simulator()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """A client that knows nothing of chat."""
    async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
def wait_until() -> WaitUntil:
    """Lets the loop run until a condition holds; TimeoutError where it does not within ten seconds."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - a number of the server's; it announces nothing
                await asyncio.sleep(0.001)

    return wait
