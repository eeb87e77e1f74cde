"""An answer as bytes: Server-Sent Events or one JSON body, and what a fault makes of them.

A plan is an iterator of packets and what comes after the last of them. It does no I/O and knows no time: the
simulator sends it, at the pace of the script.

How a chunk is written is the business of a `Wire`, one for each dialect (`simulator_dialects.py`). A packet is what one
chunk of chat.completions amounts to there, be it several events or none; so pace and faults are the same in all.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain, cycle, repeat
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .answer import Answer
    from .script import Fault, Script

_LINE_ENDS: Final = (b"\n", b"\r\n", b"\r")

_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def to_json(value: dict[str, Any]) -> str:
    """Compact JSON; what is not ASCII stays as it is."""
    return _encode(value)


def error_body(message: str, kind: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def http_error(script: Script, *, limited: bool) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and body of the faults `status` and `rate_limit`."""
    limited = limited or script.status == HTTPStatus.TOO_MANY_REQUESTS
    status = int(HTTPStatus.TOO_MANY_REQUESTS) if limited else script.status
    retry_after = 1 if limited and script.retry_after is None else script.retry_after
    headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
    if limited:
        body = error_body("Rate limit reached, as the script has it.", "requests", code="rate_limit_exceeded")
    else:
        kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        body = error_body(f"Status {status}, as the script has it.", kind)
    return status, headers, body


#: What the fault `error_event` says.
FAILED: Final = error_body("The simulator was told to fail here.", "server_error", code="simulated_error")
_FILLER: Final = {
    "id": "chatcmpl-huge",
    "object": "chat.completion.chunk",
    "created": 1_600_000_000,
    "model": "huge",
    "choices": [{"index": 0, "delta": {"content": "no end " * 585}, "logprobs": None, "finish_reason": None}],
}


class Wire(Protocol):
    """Writes one answer in a dialect. It may keep what was said so far, so each answer has its own.

    Line ends are LF here, and `line_end` once the answer is sent.
    """

    content_type: str
    headers: Mapping[str, str]
    line_end: bytes
    #: The end marker; empty where there is none.
    done: bytes
    #: An event, or what has begun as one, that is not JSON.
    malformed: bytes

    def packet(self, chunk: dict[str, Any]) -> bytes:
        """The events that a chunk amounts to; empty for none. Called for each chunk, in order."""

    def whole(self) -> dict[str, Any]:
        """The answer as one JSON object."""

    def failure(self) -> dict[str, Any]:
        """The error FAILED, in the dialect's shape."""

    def failed(self) -> bytes:
        """The event that carries it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent: the packets, and then the end of the body, the end of the connection, or nothing ever."""

    packets: Iterator[bytes]
    then: Literal["end", "close", "stall"] = "end"


def plan(answer: Answer, fault: Fault | None, split: bool, wire: Wire) -> Plan:
    """The body for an answer that meets `fault`, which must be one that lets a body begin. `split` cuts its bytes."""
    whole = _plan_stream(answer, fault, wire) if answer.stream else _plan_whole(fault, wire)
    if split:
        return Plan(_split(whole.packets, answer), whole.then)
    if answer.stream and wire.line_end != b"\n":
        return Plan((packet.replace(b"\n", wire.line_end) for packet in whole.packets), whole.then)
    return whole


def _plan_stream(answer: Answer, fault: Fault | None, wire: Wire) -> Plan:
    if fault is None:
        return Plan(_with_done(map(wire.packet, answer.chunks()), wire))
    if fault == "no_done":
        return Plan(map(wire.packet, answer.chunks()))
    chunks = list(answer.chunks())
    # Chunks before the first finish reason: no fault comes later, or the answer would be whole.
    unfinished = next(
        (at for at, chunk in enumerate(chunks) if any(choice["finish_reason"] for choice in chunk["choices"])),
        len(chunks),
    )
    after = answer.script.fault_after
    at = unfinished // 2 if after is None else min(after, unfinished)
    before = map(wire.packet, chunks[:at])
    if fault == "malformed":
        return Plan(_with_done(chain(before, (wire.malformed,), map(wire.packet, chunks[at:])), wire))
    if fault == "error_event":
        return Plan(chain(before, (wire.failed() for _ in range(1))))  # written when its turn comes
    if fault == "huge":
        return Plan(chain(before, map(wire.packet, repeat(_FILLER))))
    return _broken_off(fault, before)


def _plan_whole(fault: Fault | None, wire: Wire) -> Plan:
    if fault == "error_event":
        return Plan(iter((to_json(wire.failure()).encode(),)))
    body = to_json(wire.whole()).encode()
    if fault is None or fault == "no_done":
        return Plan(iter((body,)))
    half, rest = body[: len(body) // 2], body[len(body) // 2 :]
    if fault == "malformed":
        return Plan(iter((half, wire.malformed, rest)))
    if fault == "huge":
        return Plan(chain((half,), map(wire.packet, repeat(_FILLER))))
    return _broken_off(fault, iter((half,)))


def _broken_off(fault: Fault, before: Iterator[bytes]) -> Plan:
    if fault == "truncate":
        return Plan(before)
    if fault == "disconnect":
        return Plan(before, "close")
    if fault == "stall":
        return Plan(before, "stall")
    raise AssertionError(f"{fault} does not strike in a body")


def _with_done(packets: Iterable[bytes], wire: Wire) -> Iterator[bytes]:
    """The end marker rides in the last chunk's packet, as [DONE] does with the real API: no pace between them."""
    last: bytes | None = None
    for packet in packets:
        if last is not None:
            yield last
        last = packet
    yield (last or b"") + wire.done


def _split(packets: Iterable[bytes], answer: Answer) -> Iterator[bytes]:
    """The same body in pieces of 1 to 7 bytes; the events of a stream end in turn with LF, CRLF and CR."""
    sizes = cycle(1 + byte % 7 for byte in hashlib.shake_256(answer.digest.encode()).digest(64))
    ends = cycle(_LINE_ENDS)
    for packet in packets:
        data = packet.replace(b"\n", next(ends)) if answer.stream else packet
        start = 0
        while start < len(data):
            size = next(sizes)
            yield data[start : start + size]
            start += size
