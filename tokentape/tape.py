"""The tape: everything that happened to one job, in order, as a Redis Stream. The only truth about a job.

Keys, all in one cluster slot (`3f` is the first two hex digits of the job id):

    tokentape:{3f}:job_3f…:tape      the stream
    tokentape:{3f}:job_3f…:result    the assembled chat.completion, from a completed end on
    tokentape:{3f}:job_3f…:request   the request body, for as long as the tape lives

Entries have two fields, `kind` and `data` (JSON). Ids are `<attempt>-<seq>`:

    0-1            queued    by the client that submits
    a-0            attempt   by the worker that claims the job
    a-1, a-2, …    chunk     by that worker
    last           end       by the worker at a-n; by anybody else at the next attempt's a-0

Redis refuses an id that is not above the last one, and every write is a script that looks at the last entry
first. From that follow fencing (a worker that was overtaken is refused), idempotent append (what stands already is
skipped), exactly one end, and dense positions (a reader knows that it has missed nothing).

This module decides and encodes; it does no I/O. Commands are plain tuples for any connection or pipeline.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast, get_args

from pydantic import BaseModel, Field, ValidationError

from .chunk import ChatCompletionChunk, Usage, parse_chunk
from .errors import BadCursor, CorruptTape, UnknownFormat
from .job import ChatJob, EndStatus, ErrorInfo, Priority, canonical_json
from .scripts import Command, load

#: Stands in every 0-1. Whoever reads a tape refuses a format that it does not know, before it makes anything of the
#: rest. The number changes when a reader of the version before would read the tape wrong, and only then: a new field
#: that may be passed over is no new format.
FORMAT: Final = 1

SUBMIT: Final = load("tokentape", "submit", "_clock", "_tape")
CLAIM: Final = load("tokentape", "claim", "_clock", "_tape")
APPEND: Final = load("tokentape", "append", "_tape")
END: Final = load("tokentape", "end", "_clock", "_tape", allow_oom=True)
SETTLE: Final = load("tokentape", "settle", "_clock", "_tape", allow_oom=True)
SCRIPTS: Final = (SUBMIT, CLAIM, APPEND, END, SETTLE)

Kind = Literal["queued", "attempt", "chunk", "end"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)

#: Redis allows 64 bits in each half; attempt << 32 | seq must stay exact in a double.
_ENTRY_ID: Final = re.compile(r"(\d{1,7})-(\d{1,10})")


class Position(NamedTuple):
    """An entry id as two integers; compares in the order of the tape."""

    attempt: int
    seq: int

    def __str__(self) -> str:
        return f"{self.attempt}-{self.seq}"

    @classmethod
    def parse(cls, cursor: str | bytes | Position) -> Position:
        """From `<attempt>-<seq>`. Raises BadCursor for anything else."""
        if isinstance(cursor, Position):
            return cursor
        try:
            text = cursor.decode() if isinstance(cursor, bytes) else cursor
            match = _ENTRY_ID.fullmatch(text)
        except (TypeError, UnicodeDecodeError):
            match = None
        if match is None:
            raise BadCursor(cursor)
        return cls(int(match[1]), int(match[2]))

    def as_int(self) -> int:
        """The position as one integer, `attempt << 32 | seq`."""
        return self.attempt << 32 | self.seq


START: Final = Position(0, 0)


class QueuedData(BaseModel, frozen=True):
    """What `0-1` says. Times are milliseconds since the epoch, by the server's clock.

    `format`: of the tape; a reader refuses one that it does not know.
    `model`, `upstream` (None: by the model), `priority`, `tenant`, `metadata`, `native`: as submitted.
    `request_sha256`: of the request's canonical JSON, in hex.
    `submitted_at_ms`, `deadline_at_ms`: when it was submitted, and when it expires.
    """

    format: int
    model: str
    upstream: str | None = None
    priority: Priority = "default"
    tenant: str = ""
    metadata: dict[str, str] = Field(default_factory=dict)
    native: bool = False
    request_sha256: str
    submitted_at_ms: int
    deadline_at_ms: int


class AttemptData(BaseModel, frozen=True):
    """What `a-0` says.

    `worker`: its name. `upstream`: the one that it calls.
    `token`: random; another one under the same id is another attempt, after a failover that lost the first.
    `started_at_ms`: milliseconds since the epoch, by the server's clock.
    `reason`: why the attempt before ended; `submitted` where there was none.
    `delivery`, `try_` (`try` in JSON): which delivery by the queue this is, and which try of that.
    `spent`: how many failed attempts count so far.
    """

    worker: str
    upstream: str | None = None
    token: str
    started_at_ms: int
    reason: str
    delivery: str = "0"
    try_: int = Field(0, alias="try")
    spent: int = 0


class Timings(BaseModel, frozen=True):
    """Milliseconds. Counted from the claim of the last attempt, but `queued_ms`: from submit to that claim."""

    queued_ms: int | None = None
    first_chunk_ms: int | None = None
    total_ms: int | None = None


class EndData(BaseModel, frozen=True):
    """What the last entry says.

    `status`: "completed", "failed", "cancelled" or "expired".
    `error`: why there is no completion; None where there is one.
    `usage`: its tokens, where the upstream told them. `timings`: how long its parts took, where a worker ended it.
    `attempts`: how many had begun.
    `ended_at_ms`: milliseconds since the epoch, by the server's clock.
    """

    status: EndStatus
    error: ErrorInfo | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    attempts: int = 0
    ended_at_ms: int = 0


Data = QueuedData | AttemptData | ChatCompletionChunk | EndData
D = TypeVar("D", QueuedData, AttemptData, ChatCompletionChunk, EndData)

_MODELS: Final[dict[str, type[QueuedData | AttemptData | EndData]]] = {
    "queued": QueuedData,
    "attempt": AttemptData,
    "end": EndData,
}


class Entry:
    """One entry: `id` (str), `kind`, `raw` (the JSON as it stands) and `data`, parsed when first asked for."""

    __slots__ = ("_data", "job_id", "kind", "position", "raw")

    def __init__(self, job_id: str, position: Position, kind: Kind, raw: bytes) -> None:
        self.job_id: str = job_id
        self.position: Position = position
        self.kind: Kind = kind
        self.raw: bytes = raw
        self._data: Data | None = None

    def __repr__(self) -> str:
        return f"Entry({self.job_id}, {self.id}, {self.kind})"

    @property
    def id(self) -> str:
        """`<attempt>-<seq>`: the cursor to resume after."""
        return str(self.position)

    @property
    def data(self) -> Data:
        """QueuedData, AttemptData, ChatCompletionChunk or EndData, by `kind`. Raises CorruptTape, UnknownFormat."""
        if self._data is None:
            self._data = self._parse()
        return self._data

    def _parse(self) -> Data:
        if self.kind == "queued":
            self._check_format()
        try:
            if self.kind == "chunk":
                return parse_chunk(self.raw)
            return _MODELS[self.kind].model_validate_json(self.raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except ValueError as error:
            reason = str(error)
        raise CorruptTape(self.job_id, self.id, f"unreadable {self.kind} data: {reason}")

    def _check_format(self) -> None:
        """Before the fields are: another format may have others."""
        try:
            found = json.loads(self.raw)["format"]
        except (ValueError, TypeError, KeyError):
            return  # not what 0-1 is in any format, and refused as unreadable
        if found != FORMAT:
            raise UnknownFormat(self.job_id, self.id, found, FORMAT)

    def expect(self, kind: type[D]) -> D:
        """The data, where it is of this class. Raises CorruptTape where another kind stands here."""
        if not isinstance(self.data, kind):
            raise CorruptTape(self.job_id, self.id, f"a {self.kind} stands where {kind.__name__} belongs")
        return self.data


def decode_entry(job_id: str, row: tuple[Any, Any]) -> Entry:
    """An entry from a row of XRANGE or XREAD, text or bytes. Raises CorruptTape for what is none."""
    raw_id, fields = row
    entry_id = raw_id.decode() if isinstance(raw_id, bytes) else str(raw_id)
    match = _ENTRY_ID.fullmatch(entry_id)
    if match is None or not isinstance(fields, dict):
        raise CorruptTape(job_id, entry_id, "not an entry of a tape")
    kind = fields.get(b"kind") or fields.get("kind")
    data = fields.get(b"data") or fields.get("data")
    kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else kind
    if data is None or kind not in KINDS:
        raise CorruptTape(job_id, entry_id, f"kind {kind!r} is none of {', '.join(KINDS)}")
    position = Position(int(match[1]), int(match[2]))
    return Entry(job_id, position, cast(Kind, kind), data if isinstance(data, bytes) else data.encode())


def check_head(job_id: str, rows: Sequence[tuple[Any, Any]]) -> None:
    """Raise UnknownFormat, or CorruptTape, where the first entry of a tape (rows of XRANGE) says so."""
    if rows:
        head = decode_entry(job_id, rows[0])
        if head.kind == "queued":
            head.expect(QueuedData)


def check_follows(before: Position, entry: Entry) -> None:
    """Raise CorruptTape where an entry cannot be the next one after a position, UnknownFormat where 0-1 says so."""
    attempt, seq = entry.position
    follows = seq == before.seq + 1 if attempt == before.attempt else attempt > before.attempt and seq == 0
    if not follows:
        raise CorruptTape(entry.job_id, entry.id, f"does not follow {before}: entries are missing")
    if entry.kind == "queued":
        entry.expect(QueuedData)


@dataclass(frozen=True)
class Tape:
    """The address of one job's tape, and the commands on it."""

    namespace: str
    job_id: str

    @property
    def slot(self) -> str:
        """`namespace:{bucket}`: what all keys of the job begin with."""
        return f"{self.namespace}:{{{self.job_id[4:6]}}}"

    @property
    def key(self) -> str:
        return f"{self.slot}:{self.job_id}:tape"

    @property
    def result_key(self) -> str:
        return f"{self.slot}:{self.job_id}:result"

    @property
    def request_key(self) -> str:
        return f"{self.slot}:{self.job_id}:request"

    @property
    def _keys(self) -> tuple[str, str, str]:
        return (self.key, self.result_key, self.request_key)

    def submit(self, job: ChatJob, body: bytes, body_sha256: str, margin_s: float) -> Command:
        """Write `0-1` and the request, once. -> SubmitReply"""
        fields = {
            "format": FORMAT,
            "model": job.request["model"],
            "upstream": job.upstream,
            "priority": job.priority,
            "tenant": job.tenant,
            "metadata": job.metadata,
            "request_sha256": body_sha256,
        }
        data = canonical_json({**fields, "native": True} if job.native else fields)
        timeout_ms, margin_ms = round(job.timeout_s * 1000), round(margin_s * 1000)
        return SUBMIT.call((self.key, self.request_key), data, body, body_sha256, max(1, timeout_ms), margin_ms)

    def claim(
        self,
        *,
        delivery: int,
        try_: int,
        worker: str,
        upstream: str,
        token: str,
        reason: str,
        budget: int,
        retention_s: float,
    ) -> Command:
        """Open the next attempt. -> list, see claim.lua. `budget` is how many attempts may be spent.

        Safe to repeat with the same `token`, which is drawn anew for every attempt that is asked for.
        """
        data = canonical_json(
            {
                "worker": worker,
                "upstream": upstream,
                "token": token,
                "reason": reason,
                "delivery": str(delivery),
                "try": try_,
            }
        )
        args = (delivery, try_, token, reason, budget, data, round(retention_s * 1000))
        return CLAIM.call(self._keys, *args)

    def append(self, attempt: int, token: str, first_seq: int, chunks: Sequence[bytes]) -> Command:
        """Add chunks. Safe to repeat. -> AppendReply as a list, see append.lua"""
        return APPEND.call((self.key,), attempt, token, first_seq, *chunks)

    def end(self, position: Position, token: str, end: EndData, result: bytes, retention_s: float) -> Command:
        """Add the end at a position of this attempt, and store the result. Safe to repeat. -> list, see end.lua"""
        args = (position.attempt, token, position.seq, encode_end(end), result, round(retention_s * 1000))
        return END.call(self._keys, *args)

    def settle(self, status: EndStatus, error: ErrorInfo, retention_s: float, *, if_overdue: bool = False) -> Command:
        """End the job from outside: cancel, expire. Safe to repeat. -> list, see settle.lua"""
        data = canonical_json(
            {"status": status, "error": error.model_dump(exclude_none=True), "usage": None, "timings": None}
        )
        return SETTLE.call(self._keys, data, round(retention_s * 1000), int(if_overdue), FORMAT)

    def page(self, after: Position, count: int) -> Command:
        """The entries after a position, at most `count`. -> rows of XREAD"""
        return ("XREAD", "COUNT", count, "STREAMS", self.key, str(after))

    def at(self, position: Position) -> Command:
        """The entry at a position. -> rows of XRANGE, one or none"""
        return ("XRANGE", self.key, str(position), str(position))

    def first(self) -> Command:
        """The first entry. -> rows of XRANGE, one or none"""
        return ("XRANGE", self.key, "-", "+", "COUNT", 1)

    def last(self) -> Command:
        """The last entry. -> rows of XREVRANGE, one or none"""
        return ("XREVRANGE", self.key, "+", "-", "COUNT", 1)

    def result(self) -> Command:
        """The assembled completion. -> JSON, or None where the job has not completed"""
        return ("GET", self.result_key)

    def request(self) -> Command:
        """The request body. -> JSON"""
        return ("GET", self.request_key)


def encode_end(end: EndData) -> bytes:
    """An end as JSON, with every field of the contract present."""
    data = end.model_dump(mode="json", exclude={"error", "usage", "timings", "ended_at_ms"})
    data["error"] = end.error.model_dump(exclude_none=True) if end.error else None
    data["usage"] = end.usage.model_dump(mode="json", exclude_unset=True) if end.usage else None
    data["timings"] = end.timings.model_dump() if end.timings else None
    return canonical_json(data)


def text_of(value: bytes | str) -> str:
    """A reply as text, whichever way the connection decodes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def rows_of(reply: Any) -> list[tuple[Any, Any]]:
    """The rows of the one stream in an XREAD reply, of either protocol version; none where it is empty."""
    if not reply:
        return []
    if isinstance(reply, dict):
        (rows,) = reply.values()
        return list(rows[0]) if len(rows) == 1 and isinstance(rows[0], list) else list(rows)
    return list(reply[0][1])
