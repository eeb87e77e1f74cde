"""Dialects: how to ask each kind of chat API, and how to read what it answers. The contract; no I/O and no clock.

A dialect is two things that an upstream's kind decides:

- `request`: a chat.completions body → path, headers and JSON body of the call;
- an adapter, one for each call: bytes of the answer's body → pieces, and at the end a verdict.

    adapter = dialect.adapter(Call(…))
    for data in reads:                       # any cut of the bytes gives the same pieces
        publish(adapter.feed(data))
        if adapter.ended:                    # the end marker, or an error: what follows means nothing
            break
    pieces, verdict = adapter.close()        # once, also after a connection that broke

An adapter raises nothing, whatever it is fed: what is wrong with an answer stands in the verdict. And EOF is not a
verdict: a stream that breaks off says "finished" as little as one whose upstream gave up, so `finished` and `sentinel`
are what the upstream itself said.

What a piece holds is put right, so that any reader of chat.completion.chunk objects assembles it correctly: one id,
model and created for the whole job; tool calls numbered 0, 1, 2 …, each with its id and name once; the role once; one
finish reason for a choice; reasoning in `reasoning_content`; no null delta; usage, once seen, in every later chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from tokentape.chunk import ChatCompletionChunk
from tokentape.job import ErrorInfo
from tokentape.settings import Upstream

from ..sse import DEFAULT_MAX_EVENT_BYTES

#: Codes of the errors that say no more than that the body ended too soon. Where the connection broke, that says why.
CUT_CODES: Final = frozenset({"truncated", "empty_response", "malformed_response"})


class Piece(NamedTuple):
    """A chunk, and the JSON to publish for it: the upstream's own bytes where nothing had to be put right."""

    chunk: ChatCompletionChunk
    data: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the end of an answer means. `error` is None where the answer is complete.

    `finished`: every choice came to a finish reason of the upstream's own. `sentinel`: the dialect's end marker came.
    `synthesised`: a finish reason was added, because the end marker came without one.
    """

    error: ErrorInfo | None
    finished: bool
    sentinel: bool
    synthesised: bool = False

    @property
    def completed(self) -> bool:
        """Whether the answer is whole."""
        return self.error is None


@dataclass(frozen=True, slots=True)
class Call:
    """What an adapter must know of the call whose answer it reads.

    `job_id`, `model` and `created` (Unix seconds) stand in for what the upstream leaves out. `n` is the number of
    choices asked for, and `choice` the index of the first of them, where each has a call of its own:
    then `answer_id` is the id of all of them.
    `max_event_bytes` bounds what is held of one event, or of an answer that is not streamed.
    """

    job_id: str
    model: str
    created: int
    n: int = 1
    choice: int = 0
    answer_id: str | None = None
    max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES


@dataclass(frozen=True, slots=True)
class WireRequest:
    """One POST. `path` comes after the API's root, `query` beside what the base URL has of it."""

    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: Mapping[str, Any] = field(repr=False)
    query: Mapping[str, str] = field(default_factory=dict)
    #: Whether the answer is asked for as a stream. One that is not comes in one piece, after as long as it takes.
    streamed: bool = True
    #: Fields of the request that the API has no word for, left out because the upstream's settings say so.
    dropped: tuple[str, ...] = ()


class Adapter(Protocol):
    """Reads one answer. Used by one task, from the first byte to `close`."""

    @property
    def ended(self) -> bool:
        """Whether the answer is over, so that reading on is of no use."""

    def feed(self, data: bytes) -> list[Piece]:
        """The pieces that a read of any size completes. Nothing after the end."""

    def close(self) -> tuple[list[Piece], Verdict]:
        """The body is over, or broke off: the last pieces, and what it all was."""


class Dialect(Protocol):
    """One kind of chat API. `one_answer`: a call gets one choice, so that for n of them n calls are made."""

    one_answer: bool

    def request(self, body: Mapping[str, Any], upstream: Upstream, *, native: bool = False) -> WireRequest:
        """How to ask for this chat.completions body, or with `native` this body of the API's own.

        The body is not changed. The key, and what the upstream's settings add to each call, are not added here.
        Raises InvalidRequest for a field that the API has no word for.
        """

    def adapter(self, call: Call) -> Adapter:
        """A reader for the answer to one call."""
