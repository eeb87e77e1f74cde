"""The fixtures: `pytest_plugins = ["tokentape.testing.plugin"]` in the top conftest.py of a project.

They are plain fixtures, so that they serve tests with and without an event loop; `async with stack.async_client()`
opens an asyncio client on the loop of the test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from ..embedded import EmbeddedServer
from .fake import FakeStack
from .stack import Stack


@pytest.fixture(scope="session")
def tokentape_server() -> Iterator[EmbeddedServer]:
    """One server for all tests of this process. Each stack has a namespace of its own on it."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def tokentape_options() -> dict[str, Any]:
    """What `tokentape_stack` passes to Stack. Override it in a conftest, a module or a class."""
    return {}


@pytest.fixture
def tokentape_stack(
    tokentape_server: EmbeddedServer, tokentape_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stack]:
    """A Stack for this test. The environment leads to it and holds no other setting, so that `Client()` finds it."""
    for name in list(os.environ):
        if name.startswith("TOKENTAPE_") and not name.startswith("TOKENTAPE_TEST_"):
            monkeypatch.delenv(name)
    with Stack(**{"server": tokentape_server, **tokentape_options}) as stack:
        for name, value in stack.environ.items():
            monkeypatch.setenv(name, value)
        yield stack


@pytest.fixture
def tokentape_fake() -> Iterator[FakeStack]:
    """A FakeStack for this test."""
    with FakeStack() as fake:
        yield fake
