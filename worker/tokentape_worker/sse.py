"""Server-sent events: bytes in, events out. No I/O.

The WHATWG rules are kept: one leading BOM goes; lines end with CRLF, LF or CR, and a CR at the end of one read with an
LF at the start of the next is one end; U+2028 and its like are text; `:` begins a comment; exactly one space after the
colon goes; `data` lines join with LF; `event` holds for one event, `id` until the next one and never with a NUL in it;
a blank line dispatches, and an event without data is none (but `data:` alone is one, of no bytes).

Two things differ, because upstreams do:

- at the end of the stream a pending event is given all the same (`flush`); whether it is whole, the caller can tell;
- lines that are no field of SSE are not dropped. Gateways write a bare JSON error, or HTML, between or instead of
  events. Such lines come as an event of their own, marked `stray`, in their place among the others.

Bytes stay bytes: they are split into lines before anything is decoded, so a character that two reads cut apart needs no
care, and a chunk can be published exactly as it came. What is invalid UTF-8 is the business of whoever decodes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

BOM: Final = b"\xef\xbb\xbf"
#: Far above any real event, and what one job may put out in all.
DEFAULT_MAX_EVENT_BYTES: Final = 16 * 1024 * 1024


class Event(NamedTuple):
    """One event: its data lines joined with LF, its `event` field ("" where there was none), the last `id` so far.

    `stray`: no event of SSE, but lines that are none of its fields, joined with LF.
    """

    data: bytes
    name: str = ""
    id: str = ""
    stray: bool = False


class EventTooLarge(ValueError):
    """An event, or a line, is longer than the bound. `events` are those before it in the same read."""

    def __init__(self, max_event_bytes: int, events: list[Event]) -> None:
        super().__init__(f"an event is larger than {max_event_bytes} bytes")
        self.max_event_bytes = max_event_bytes
        self.events = events


class Decoder:
    """Incremental decoder of one stream. Any cut of the bytes gives the same events; time is linear in the bytes.

    `retry_ms` is the last reconnection time that the stream asked for; nothing here acts on it. After EventTooLarge a
    decoder is of no further use.
    """

    __slots__ = ("_after_cr", "_data", "_head", "_id", "_limit", "_name", "_partial", "_size", "_stray", "retry_ms")

    def __init__(self, max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES) -> None:
        self.retry_ms: int | None = None
        self._limit = max_event_bytes
        self._head: bytes | None = b""  # the first bytes, until it is known whether they are a BOM
        self._after_cr = False
        self._partial = bytearray()  # a line without its end
        self._data: list[bytes] = []
        self._stray: list[bytes] = []
        self._size = 0  # bytes held in _data and _stray
        self._name = ""
        self._id = ""

    def feed(self, data: bytes) -> list[Event]:
        """Take in a read of any size and give the events that it completes. Raises EventTooLarge."""
        if self._head is not None:
            data = self._without_bom(data)
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == 10:
                data = data[1:]
        if not data:
            return []
        if self._is_idle() and _is_one_plain_event(data) and len(data) <= self._limit:
            return [Event(data[6:-2], "", self._id)]
        self._after_cr = data[-1:] == b"\r"
        lines = _lines(data)
        rest = lines.pop()
        events: list[Event] = []
        if self._partial and lines:
            self._partial += lines[0]
            lines[0] = bytes(self._partial)
            self._partial = bytearray()
        for line in lines:
            self._line(line, events)
        if rest:
            self._partial += rest
            self._check(len(self._partial), events)
        return events

    def flush(self) -> list[Event]:
        """The stream has ended: give what is pending, although no blank line came. Raises EventTooLarge."""
        events = self.feed(b"\n") if self._partial or self._head else []
        self._dispatch(events)
        return events

    def _is_idle(self) -> bool:
        """Whether nothing is pending."""
        return not (self._partial or self._data or self._stray or self._name)

    def _without_bom(self, data: bytes) -> bytes:
        head = (self._head or b"") + data
        if len(head) < len(BOM) and BOM.startswith(head):
            self._head = head
            return b""
        self._head = None
        return head.removeprefix(BOM)

    def _line(self, line: bytes, events: list[Event]) -> None:
        self._check(len(line), events)
        if self._stray and not _is_stray(line):
            self._give_stray(events)
        if line[:6] == b"data: ":  # nearly every line, so before the general rule
            self._data.append(line[6:])
            self._size += len(line)
        elif not line:
            self._dispatch(events)
        elif line[0] != 58:  # a colon begins a comment
            self._field(line)

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(line)
        elif name == b"event":
            self._name = value.decode("utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif name == b"retry":
            if value.isdigit() and len(value) <= 18:
                self.retry_ms = int(value)
        else:
            self._stray.append(line)
            self._size += len(line)

    def _dispatch(self, events: list[Event]) -> None:
        self._give_stray(events)
        if self._data:
            data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            events.append(Event(data, self._name, self._id))
            self._data = []
        self._name = ""
        self._size = 0

    def _give_stray(self, events: list[Event]) -> None:
        if self._stray:
            data = b"\n".join(self._stray)
            self._size -= sum(map(len, self._stray))
            self._stray = []
            events.append(Event(data, id=self._id, stray=True))

    def _check(self, more: int, events: list[Event]) -> None:
        if self._size + more > self._limit:
            raise EventTooLarge(self._limit, events)


def _lines(data: bytes) -> list[bytes]:
    """The lines of a read, and last what stands after its last line end, perhaps nothing."""
    if b"\r" not in data:
        return data.split(b"\n")
    lines = data.splitlines()  # of bytes: at CR, LF and CRLF only
    return [*lines, b""] if data[-1:] in (b"\r", b"\n") else lines


def _is_one_plain_event(data: bytes) -> bool:
    """Whether a read is one `data` line and a blank one: nearly every read, so worth a way of its own."""
    return data[:6] == b"data: " and data[-2:] == b"\n\n" and data.count(b"\n") == 2 and b"\r" not in data


def _is_stray(line: bytes) -> bool:
    return bool(line) and line.partition(b":")[0] not in (b"data", b"event", b"id", b"retry", b"")
