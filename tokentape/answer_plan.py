"""An answer as bytes: Server-Sent Events or one JSON body, and what a fault makes of them.

A plan is an iterator of packets and what comes after the last of them. It does no I/O and knows no time: the
simulator sends it, at the pace of the script.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain, cycle, repeat
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .answer import Answer
    from .script import Fault, Script

_DONE: Final = b"data: [DONE]\n\n"
_NOT_JSON: Final = b'data: {"id": "chatcmpl-cut", "choices": [{"index": 0, "delta"\n\n'
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


_FAILED: Final = error_body("The simulator was told to fail here.", "server_error", code="simulated_error")
_FILLER: Final = {
    "id": "chatcmpl-huge",
    "object": "chat.completion.chunk",
    "created": 1_600_000_000,
    "model": "huge",
    "choices": [{"index": 0, "delta": {"content": "no end " * 585}, "logprobs": None, "finish_reason": None}],
}


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + to_json(data).encode() + b"\n\n"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent: the packets, and then the end of the body, the end of the connection, or nothing ever."""

    packets: Iterator[bytes]
    then: Literal["end", "close", "stall"] = "end"


def plan(answer: Answer, fault: Fault | None, split: bool) -> Plan:
    """The body for an answer that meets `fault`, which must be one that lets a body begin. `split` cuts its bytes."""
    whole = _plan_stream(answer, fault) if answer.stream else _plan_whole(answer, fault)
    return Plan(_split(whole.packets, answer), whole.then) if split else whole


def _plan_stream(answer: Answer, fault: Fault | None) -> Plan:
    if fault is None:
        return Plan(_with_done(map(_event, answer.chunks())))
    events: list[bytes] = []
    unfinished = 0  # chunks before the first finish reason: no fault comes later, or the answer would be whole
    for chunk in answer.chunks():
        events.append(_event(chunk))
        if unfinished + 1 == len(events) and not any(choice["finish_reason"] for choice in chunk["choices"]):
            unfinished += 1
    if fault == "no_done":
        return Plan(iter(events))
    after = answer.script.fault_after
    struck = _strike(fault, events, unfinished // 2 if after is None else min(after, unfinished))
    return Plan(_with_done(struck.packets)) if fault == "malformed" else struck


def _plan_whole(answer: Answer, fault: Fault | None) -> Plan:
    body = to_json(answer.completion()).encode()
    if fault is None or fault == "no_done":
        return Plan(iter((body,)))
    if fault == "error_event":
        return Plan(iter((to_json(_FAILED).encode(),)))
    return _strike(fault, [body[: len(body) // 2], body[len(body) // 2 :]], 1)


def _strike(fault: Fault, packets: Sequence[bytes], at: int) -> Plan:
    before = packets[:at]
    if fault == "truncate":
        return Plan(iter(before))
    if fault == "disconnect":
        return Plan(iter(before), "close")
    if fault == "stall":
        return Plan(iter(before), "stall")
    if fault == "malformed":
        return Plan(chain(before, (_NOT_JSON,), packets[at:]))
    if fault == "error_event":
        return Plan(chain(before, (_event(_FAILED),)))
    if fault == "huge":
        return Plan(chain(before, repeat(_event(_FILLER))))
    raise AssertionError(f"{fault} does not strike in a body")


def _with_done(events: Iterable[bytes]) -> Iterator[bytes]:
    """[DONE] rides in the last chunk's packet, as it does with the real API: no pace comes between them."""
    last = b""
    for event in events:
        if last:
            yield last
        last = event
    yield last + _DONE


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
