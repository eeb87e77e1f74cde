"""The body of an answer, whatever its content-type says: a stream of events, or one JSON text.

Upstreams answer `"stream": true` with a whole completion, with a bare error object, with newlines as heartbeats before
either, and with HTML. So the first byte that is not white space decides: `{` or `[` is JSON and is held until the end,
anything else is server-sent events. A body that began like JSON and is not one is read as events after all, where its
lines come out as stray ones. Bounded by `max_event_bytes`; sse.EventTooLarge beyond.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from ..sse import BOM, DEFAULT_MAX_EVENT_BYTES, Decoder, Event, EventTooLarge

#: Heartbeats before a body; after more than this it is taken for a stream.
_MAX_BLANK_BYTES: Final = 64 * 1024
#: Some servers write these, which JSON does not know. A log probability of minus infinity is -9999.0 in the API.
_CONSTANTS: Final = {"-Infinity": -9999.0}


def _float(text: str) -> float | None:
    value = float(text)
    if math.isinf(value):  # 1e999, which is as good as Infinity
        return None if value > 0 else _CONSTANTS["-Infinity"]
    return value


def read_json(data: bytes) -> Any:
    """The value of a JSON text. Invalid UTF-8 becomes U+FFFD, NaN and Infinity null. Raises ValueError."""
    try:
        return json.loads(data.decode("utf-8", "replace"), parse_constant=_CONSTANTS.get, parse_float=_float)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_json(value: Any) -> bytes:
    """Compact JSON in UTF-8. Half a surrogate pair becomes U+FFFD. Raises ValueError for what JSON cannot hold."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


class Body:
    """Events of one body. A body of one JSON text is one stray event, given by `flush`."""

    __slots__ = ("_decoder", "_head", "_json", "_limit")

    def __init__(self, max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES) -> None:
        self._limit = max_event_bytes
        self._decoder = Decoder(max_event_bytes)
        self._head: bytes | None = b""  # until its first byte that is not blank
        self._json: bytearray | None = None

    def feed(self, data: bytes) -> list[Event]:
        """The events that a read of any size completes."""
        if self._head is None and self._json is None:
            return self._decoder.feed(data)
        if self._json is not None:
            self._json += data
            if len(self._json) > self._limit:
                raise EventTooLarge(self._limit, [])
            return []
        return self._begin((self._head or b"") + data)

    def flush(self) -> list[Event]:
        """The body is over: what was pending."""
        if self._json is None:
            events = self._decoder.feed(self._head) if self._head else []
            return events + self._decoder.flush()
        data = bytes(self._json).strip()
        try:
            read_json(data)
        except ValueError:
            return self._decoder.feed(bytes(self._json)) + self._decoder.flush()
        return [Event(data, stray=True)]

    def _begin(self, head: bytes) -> list[Event]:
        start = head.removeprefix(BOM).lstrip()
        undecided = not start or (len(head) < len(BOM) and BOM.startswith(head))
        if undecided and len(head) <= _MAX_BLANK_BYTES:
            self._head = head
            return []
        self._head = None
        if start[:1] in (b"{", b"["):
            self._json = bytearray()
            return self.feed(start)
        return self._decoder.feed(head)
