"""Who answers in the demo, and how each answer is proved.

    sim       a process of the simulator; the right answer is a function of the request
    llama     a process of the engine; after the run it is asked again directly, without queue, worker or tape
    openai    the real API; the answer has to be what the tape's own chunks add up to, and to have ended as it should

Each is entered (its process runs), names what a worker's environment needs, and says of an answer what is wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final, Protocol, Self
from zlib import crc32

from . import engine
from .answer import expected_completion
from .child import Child
from .completion import ChatCompletion
from .errors import ConfigError, InvalidRequest
from .job import canonical_json
from .script import Script

#: The simulator's pace: about two seconds an answer, so that there is something to see and to kill.
SIMULATED: Final = Script(chunks=48, interval_ms=40.0, first_token_ms=150.0)

_START_WAIT_S: Final = 60.0
_ANSWER_WAIT_S: Final = 120.0

Body = dict[str, Any]


class Engine(AbstractContextManager["Engine"], Protocol):
    """What the demo asks of the one who answers."""

    #: What the demo calls it, where it has an address.
    title: str
    #: Streams that a worker runs at once.
    slots: int

    def prepare(self, body: Body) -> Body:
        """The request that is submitted for a prompt."""
        ...

    def environment(self) -> dict[str, str]:
        """What a worker needs to reach it. Once entered."""
        ...

    def check(self) -> None:
        """Raise ChildFailed where its process has ended."""
        ...

    def faults(self, bodies: Sequence[Body], results: Sequence[ChatCompletion | None]) -> list[str | None]:
        """For each result that is there what is wrong with it; None where it is exact. Called once, after the run."""
        ...


class _Process:
    """What the two engines share that are a process of ours."""

    title: str
    slots: int
    module: ClassVar[str]
    arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._base_url = ""
        self._process: Child | None = None

    def __enter__(self) -> Self:
        name = self.title
        self._process = Child(name, self.module, *self.arguments, env=self._environ)
        try:
            self._base_url = self._process.wait_json(_START_WAIT_S)["base_url"]
        except BaseException:
            self._process.stop()
            raise
        self.title = f"{name} at {self._base_url}"
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.stop()

    def environment(self) -> dict[str, str]:
        # A proxy that the environment names is not for loopback.
        return {"OPENAI_BASE_URL": self._base_url, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def check(self) -> None:
        if self._process is not None:
            self._process.check()


class Simulated(_Process):
    """The simulator."""

    title = "simulated chat API"
    slots = 12
    module = "tokentape.cli"
    arguments = (
        "simulate",
        "--port=0",
        "--json",
        f"--chunks={SIMULATED.chunks}",
        f"--interval-ms={SIMULATED.interval_ms}",
        f"--first-token-ms={SIMULATED.first_token_ms}",
    )

    def prepare(self, body: Body) -> Body:
        """Some answers are longer than others: as with a model, not all of them end in the same moment."""
        if "simulate" in body:
            return body
        return {**body, "simulate": {"chunks": SIMULATED.chunks - 20 + crc32(canonical_json(body)) % 40}}

    def faults(self, bodies: Sequence[Body], results: Sequence[ChatCompletion | None]) -> list[str | None]:
        return [
            None if result is None else self._fault(body, result) for body, result in zip(bodies, results, strict=True)
        ]

    def _fault(self, body: Body, result: ChatCompletion) -> str | None:
        try:
            expected = ChatCompletion.model_validate(expected_completion(body, SIMULATED))
        except InvalidRequest as error:
            return f"no answer is right: {error}"
        return difference(result, expected)


class Llama(_Process):
    """The language model on this machine, at temperature 0.

    Its texts do not depend on what runs beside them: our 24 prompts, one, two, four and eight at a time, twelve rounds
    in all, gave the same texts each time, prompt cache included. But where `max_tokens` cuts through a character of
    several bytes, a streamed text lacks the space before that character, and one that is not streamed has it. So the
    engine is asked for a stream here too, and what it sends is put together by other code than the worker's.
    """

    title = "language model (SmolLM2-135M, llama.cpp)"
    slots = engine.SLOTS
    module = "tokentape.engine"

    def __enter__(self) -> Self:
        engine.check_installed()
        return super().__enter__()

    def prepare(self, body: Body) -> Body:
        return {"max_tokens": 40, **body, "temperature": 0}

    def faults(self, bodies: Sequence[Body], results: Sequence[ChatCompletion | None]) -> list[str | None]:
        expected = asyncio.run(_ask_directly(self._base_url, bodies, self.slots))
        return [
            None if result is None else _text_difference(_said(result), said)
            for result, said in zip(results, expected, strict=True)
        ]


class OpenAI:
    """The real API. What it should have said nobody knows; whether everything it said arrived, the tape tells."""

    title = "OpenAI's API"
    slots = 8

    def __init__(self, _environ: Mapping[str, str]) -> None:
        if not os.environ.get("OPENAI_API_KEY"):
            raise ConfigError("--engine openai asks the real API: set OPENAI_API_KEY to a key of yours")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return

    def prepare(self, body: Body) -> Body:
        return body

    def environment(self) -> dict[str, str]:
        return {name: os.environ[name] for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL") if name in os.environ}

    def check(self) -> None:
        """Not a process of ours."""

    def faults(self, bodies: Sequence[Body], results: Sequence[ChatCompletion | None]) -> list[str | None]:
        return [
            None if result is None else _unfinished(body, result) for body, result in zip(bodies, results, strict=True)
        ]


ENGINES: Final[Mapping[str, Callable[[Mapping[str, str]], Engine]]] = {
    "sim": Simulated,
    "llama": Llama,
    "openai": OpenAI,
}


def difference(result: ChatCompletion, expected: ChatCompletion) -> str | None:
    """Where two completions differ; None where they say the same. A field that is null is one that is not there."""
    if fault := _text_difference(result.text, expected.text):
        return fault
    given, wanted = (one.model_dump(mode="json", exclude_none=True) for one in (result, expected))
    fields = sorted(name for name in given.keys() | wanted.keys() if given.get(name) != wanted.get(name))
    return f"differs in {', '.join(fields)}" if fields else None


def _text_difference(text: str, expected: str) -> str | None:
    if text == expected:
        return None
    at = next(
        (i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), min(len(text), len(expected))
    )
    return f"differs at character {at}: {text[at : at + 20]!r}, expected {expected[at : at + 20]!r}"


def _said(completion: ChatCompletion) -> str:
    reason = completion.choices[0].finish_reason if completion.choices else None
    return f"{completion.text} [{reason}]"


def _unfinished(body: Body, result: ChatCompletion) -> str | None:
    missing = (body.get("n") or 1) - len(result.choices)
    if missing > 0:
        return f"{missing} choices are missing"
    open_ = [str(choice.index) for choice in result.choices if not choice.finish_reason]
    return f"no finish reason in choice {', '.join(open_)}" if open_ else None


async def _ask_directly(base_url: str, bodies: Sequence[Body], at_once: int) -> list[str]:
    """Text and finish reason of each answer, by plain HTTP."""
    import httpx  # noqa: PLC0415 - an extra, of which only this engine's demo has need here

    turns = asyncio.Semaphore(at_once)
    # A connection for each call: llama.cpp's server closes idle ones whenever it likes, and a call would meet that.
    limits = httpx.Limits(max_keepalive_connections=0)

    async def ask(body: Body) -> str:
        async with turns:
            response = await client.post(f"{base_url}/chat/completions", json={**body, "stream": True})
        text, reason = "", None
        for line in response.content.split(b"\n"):
            if line.startswith(b"data: {"):
                for choice in json.loads(line.removeprefix(b"data: ")).get("choices", ()):
                    text += choice["delta"].get("content") or ""
                    reason = choice["finish_reason"] or reason
        return f"{text} [{reason}]"

    async with httpx.AsyncClient(timeout=_ANSWER_WAIT_S, limits=limits, trust_env=False) as client:
        return await asyncio.gather(*map(ask, bodies))
