"""The dialects that the simulator speaks: the contract, OpenAI's own, and what the other two share.

A dialect reads a request of its API back into chat.completions. From there on all is the same: the answer is planned
once (`answer.py`), met by the same faults at the same pace (`answer_plan.py`), and written by the dialect's `Wire`. So
what is said to a request depends on what it asks, and not on the words it asks in.

Refusals take the other way: they are made in OpenAI's shape, and each dialect restates them.

| | path | key | end marker |
|---|---|---|---|
| OpenAI | /v1/chat/completions | Authorization: Bearer | [DONE] |
| Anthropic | /v1/messages, /messages | x-api-key, or Bearer | message_stop |
| Gemini | /v1beta/models/M:streamGenerateContent, :generateContent | x-goog-api-key, `?key=`, or Bearer | none |

No I/O and no aiohttp. The readers are forgiving where the real APIs are, and refuse what these are known to refuse and
a translation could get wrong. They share nothing with `translation/`, which they are there to check.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

from .answer import Answer
from .answer_plan import FAILED, Wire, to_json
from .errors import InvalidRequest


class Posted(NamedTuple):
    """A request as it came in. `path` is unescaped; `headers` are found in any case of their names."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: dict[str, Any]


class Asked(NamedTuple):
    """What a request asks, as one of chat.completions, and who writes the answer to it."""

    request: dict[str, Any]
    wire: Callable[[Answer], Wire]


class Refusal(NamedTuple):
    """An answer that is an error."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


class SimulatedDialect(Protocol):
    """One API. Its `paths` are aiohttp's patterns. It has no state."""

    paths: tuple[str, ...]

    def owns(self, path: str) -> bool:
        """Whether a path, known or not, is one of this API, so that it says no in its own shape."""

    def key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        """The key that came with a request; "" for none."""

    def read(self, posted: Posted) -> Asked:
        """What is asked. Raises InvalidRequest, naming the field in the API's own words."""

    def refusal(self, said: Refusal) -> Refusal:
        """An error in OpenAI's shape, restated."""


class OpenAI:
    """chat.completions, which needs no reading."""

    paths: tuple[str, ...] = ("/v1/chat/completions",)

    def owns(self, path: str) -> bool:  # noqa: ARG002 - whatever is nobody else's
        """All that is left."""
        return True

    def key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:  # noqa: ARG002 - of other dialects
        """The bearer's."""
        return bearer(headers)

    def read(self, posted: Posted) -> Asked:
        """The body as it is."""
        return Asked(posted.body, _ChunkWire)

    def refusal(self, said: Refusal) -> Refusal:
        """The same."""
        return said


class _ChunkWire:
    """Chunks as they are."""

    content_type = "text/event-stream"
    line_end = b"\n"
    done = b"data: [DONE]\n\n"
    malformed = b'data: {"id": "chatcmpl-cut", "choices": [{"index": 0, "delta"\n\n'

    def __init__(self, answer: Answer) -> None:
        self.headers: Mapping[str, str] = {"X-Request-Id": request_id(answer)}
        self._answer = answer

    def packet(self, chunk: dict[str, Any]) -> bytes:
        return data_event(chunk)

    def whole(self) -> dict[str, Any]:
        return self._answer.completion()

    def failure(self) -> dict[str, Any]:
        return FAILED

    def failed(self) -> bytes:
        return data_event(FAILED)


#: The error that a stream breaks off with; the status that it has where it comes in place of an answer.
FAILURE: Final = Refusal(500, {}, FAILED)


def bearer(headers: Mapping[str, str]) -> str:
    """The key of the Authorization header."""
    return headers.get("Authorization", "").removeprefix("Bearer ")


def request_id(answer: Answer) -> str:
    """The same for the same request, so that a log can be compared."""
    return f"req_{answer.digest[:32]}"


def data_event(data: dict[str, Any]) -> bytes:
    """An event without a name."""
    return b"data: " + to_json(data).encode() + b"\n\n"


def sign(text: str) -> str:
    """The signature of a thought or of a call, which the next turn has to send back with it.

    A real one is opaque and encrypted; this one can be checked. Base64 of letters and digits has neither + nor /, so
    that it is the same in the alphabet for URLs, which google-genai writes.
    """
    return base64.b64encode(hashlib.sha256(text.encode()).hexdigest().encode()).decode()


def objects(value: object, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a list, each with its path; none for null. Raises InvalidRequest for other things."""
    if value is None:
        return
    if not isinstance(value, list):
        raise InvalidRequest("Input should be a valid list", field=field)
    for index, entry in enumerate(value):
        yield f"{field}.{index}", an_object(entry, f"{field}.{index}")


def an_object(value: object, field: str) -> dict[str, Any]:
    """A value that has to be an object. Raises InvalidRequest."""
    if not isinstance(value, dict):
        raise InvalidRequest("Input should be an object", field=field)
    return value


def given(**fields: object) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
