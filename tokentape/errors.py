"""Everything that can go wrong for a caller, as one tree.

    TokentapeError
    ├── InvalidRequest        the job was refused: nothing was enqueued
    ├── IdempotencyConflict   the key belongs to a job with another body
    ├── JobNotFound           never submitted, or its tape has expired
    ├── BadCursor             not an entry id
    ├── CorruptTape           an entry that cannot be read, or a hole in the tape
    │   └── UnknownFormat     nothing is wrong with the tape: another version of this library wrote it
    ├── Restarted             a new attempt began: what was assembled so far is void
    ├── ResultTimeout         the caller's wait is over; the job goes on (also a TimeoutError)
    ├── RedisUnavailable      the server did not answer in time (also a ConnectionError)
    ├── ClientClosed          the client was used after close(), or closed while it was (also a RuntimeError)
    ├── ConfigError           a setting has a wrong name or value
    ├── ExtraMissing          the command needs an extra that is not installed
    └── JobError              the job ended, and not with a completion
        ├── JobFailed
        ├── JobCancelled
        └── JobExpired

A caller can always tell "ended badly" (JobError) from "not known yet" (ResultTimeout, RedisUnavailable).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .job import ErrorInfo


class TokentapeError(Exception):
    """Base of every error that this library raises on purpose. They can be pickled, and so cross processes."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own calls the class with the message alone, and the classes below are made of more than that.
        return _rebuilt, (type(self), self.args), self.__dict__


def _rebuilt(kind: type[TokentapeError], args: tuple[Any, ...]) -> TokentapeError:
    """An error with its message. Not by its own __init__, which would make the message anew."""
    error = kind.__new__(kind)
    super(TokentapeError, error).__init__(*args)
    return error


class InvalidRequest(TokentapeError, ValueError):
    """The job was refused before anything was written.

    `field` names what is wrong, dotted (`messages.0.content`), or is None where it is the whole request.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class IdempotencyConflict(TokentapeError):
    """The idempotency key was used before, with another request."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"{job_id} was submitted with the same idempotency key and another request")
        self.job_id = job_id


class JobNotFound(TokentapeError, LookupError):
    """No tape stands under this id: it was never submitted, its retention is over, or it is no job id at all."""

    def __init__(self, job_id: str, why: str = "no such job (never submitted, or its retention is over)") -> None:
        super().__init__(f"{job_id}: {why}")
        self.job_id = job_id


class BadCursor(TokentapeError, ValueError):
    """A cursor that is not an entry id of the form `<attempt>-<seq>`."""

    def __init__(self, cursor: object) -> None:
        super().__init__(f"{cursor!r} is not an entry id: expected <attempt>-<seq>, as in 0-0 or 1-42")
        self.cursor = cursor


class CorruptTape(TokentapeError):
    """An entry that cannot be read, or that does not follow the one before. The reader goes no further."""

    def __init__(self, job_id: str, entry_id: str, reason: str) -> None:
        super().__init__(f"{job_id}: entry {entry_id}: {reason}")
        self.job_id = job_id
        self.entry_id = entry_id
        self.reason = reason


class UnknownFormat(CorruptTape):
    """The tape is of a format that this version does not read: another version wrote it. Nothing was touched.

    `format` is what the tape's first entry says, `known` the one format that this version reads.
    """

    def __init__(self, job_id: str, entry_id: str, found: object, known: int) -> None:
        super().__init__(
            job_id,
            entry_id,
            f"the tape has format {found!r}, this version reads format {known}; upgrade tokentape",
        )
        self.format = found
        self.known = known


class Restarted(TokentapeError):
    """A new attempt began. What had been read of the attempt before is void; `reason` says why it ended."""

    def __init__(self, job_id: str, attempt: int, reason: str) -> None:
        super().__init__(f"{job_id}: attempt {attempt} starts over ({reason})")
        self.job_id = job_id
        self.attempt = attempt
        self.reason = reason


class ResultTimeout(TokentapeError, TimeoutError):
    """The caller waited `wait_s` seconds. The job is not affected.

    `end`: the id of the job's end, where that stands before the cursor that was followed; None else. Nothing will come
    after such a cursor: its entry was lost in a failover, or it is of another job. Follow from `0-0`.
    """

    def __init__(self, job_id: str, wait_s: float, *, end: str | None = None) -> None:
        super().__init__(
            f"{job_id} has ended, at {end}: nothing comes after the cursor"
            if end
            else f"{job_id} did not end within {wait_s:g} s; it goes on, and can be waited for again"
        )
        self.job_id = job_id
        self.wait_s = wait_s
        self.end = end


class RedisUnavailable(TokentapeError, ConnectionError):
    """The server did not answer before the caller's deadline. Submitting again with the same key is safe.

    `login_refused`: it did answer, but with a refusal of the user or the password, or of having none.
    `url`: which server was asked, its password masked; None where that is not known. A note of the error says it too.
    """

    def __init__(self, message: str, *, login_refused: bool = False) -> None:
        super().__init__(message)
        self.login_refused = login_refused
        self.url: str | None = None


class ClientClosed(TokentapeError, RuntimeError):
    """The client was closed before this call, or while it waited. Make another one."""


class ConfigError(TokentapeError, ValueError):
    """A setting has a wrong name or a wrong value; the message names it and where it was read.

    `problems` are all that were found, each a line of its own; the message has all of them.
    """

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        more = "".join(f"; also: {problem}" for problem in problems[1:])
        super().__init__(message + more)
        self.problems: tuple[str, ...] = tuple(problems) or (message,)


class ExtraMissing(TokentapeError, ImportError):
    """A part was asked for whose packages are not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the {extra!r} extra: pip install 'tokentape[{extra}]'")
        self.extra = extra


class JobError(TokentapeError):
    """The job ended without a completion. `error` says why and whether a retry may help."""

    status = "failed"

    def __init__(self, job_id: str, error: ErrorInfo) -> None:
        super().__init__(f"{job_id} {self.status}: {error.type}: {error.message}")
        self.job_id = job_id
        self.error = error


class JobFailed(JobError):
    """Upstream or the worker gave up."""


class JobCancelled(JobError):
    """Somebody cancelled the job."""

    status = "cancelled"


class JobExpired(JobError):
    """The job's own deadline (`timeout_s` from submit) passed first."""

    status = "expired"
