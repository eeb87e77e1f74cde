"""Tokentape: durable streams for chat jobs.

Submit a chat job, and every chunk of its answer lands on the job's tape, a Redis Stream, from which any number of
readers follow it, live or later, and assemble the same completion.

    from tokentape import Client

    with Client() as client:
        job = client.submit(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}])
        for piece in job.text():
            print(piece, end="", flush=True)
        completion = job.result()

To begin with
    Client, AsyncClient     submit, follow, result, cancel, status; blocking, and for asyncio
    Job, AsyncJob           a handle on one job
    ChatJob                 a request and how to run it, where an id is wanted before it is submitted
    Settings, Upstream      what a client and a worker are told; the environment, a file, or arguments

What a client answers
    ChatCompletion          a whole answer
    JobView, ErrorInfo      a job as it stands now, and why it ended without an answer
    Usage                   the tokens that an answer took
    Overview, WorkerView    queues and workers now, and one of the workers

The tape
    Entry                   one entry: its id is the cursor to resume after, its data is, by kind,
    QueuedData              `queued`    what was submitted, and when
    AttemptData             `attempt`   a worker begins; whatever an earlier attempt said is void
    ChatCompletionChunk     `chunk`     a piece of the answer
    EndData                 `end`       how it ended; there is exactly one, and nothing after it
    Position                an id as two numbers, which compare in the order of the tape
    Fold, fold              chunks to a completion

Errors, all of them a TokentapeError
    JobError                the job ended without an answer: JobFailed, JobCancelled, JobExpired
    ResultTimeout           it has not ended yet, and this call waited long enough
    Restarted               its text starts over
    JobNotFound             no such job, or its retention is over
    InvalidRequest, IdempotencyConflict, BadCursor, ClientClosed, ConfigError, ExtraMissing
                            what the caller can put right
    CorruptTape             the tape cannot be read; UnknownFormat: not by this version
    RedisUnavailable        the server did not answer in time; submitting with an idempotency key is safe to repeat

Names that end in `_s` are seconds, in `_ms` milliseconds, in `_bytes` bytes; moments (`_at`) are seconds since the
epoch, `_at_ms` milliseconds.
`help(tokentape.Client)` says more of each; `tokentape.testing` is the whole stack, or a fake of it, for your own tests.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    BadCursor,
    ClientClosed,
    ConfigError,
    CorruptTape,
    ExtraMissing,
    IdempotencyConflict,
    InvalidRequest,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    JobNotFound,
    RedisUnavailable,
    Restarted,
    ResultTimeout,
    TokentapeError,
    UnknownFormat,
)

if TYPE_CHECKING:
    from .async_client import AsyncClient, AsyncJob
    from .chunk import ChatCompletionChunk, Usage
    from .client import Client, Job
    from .completion import ChatCompletion, Fold, fold
    from .job import ChatJob, ErrorInfo
    from .operations import JobView, Overview, WorkerView
    from .settings import Settings, Upstream
    from .tape import AttemptData, EndData, Entry, Position, QueuedData

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "AttemptData",
    "BadCursor",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatJob",
    "Client",
    "ClientClosed",
    "ConfigError",
    "CorruptTape",
    "EndData",
    "Entry",
    "ErrorInfo",
    "ExtraMissing",
    "Fold",
    "IdempotencyConflict",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobError",
    "JobExpired",
    "JobFailed",
    "JobNotFound",
    "JobView",
    "Overview",
    "Position",
    "QueuedData",
    "RedisUnavailable",
    "Restarted",
    "ResultTimeout",
    "Settings",
    "TokentapeError",
    "UnknownFormat",
    "Upstream",
    "Usage",
    "WorkerView",
    "fold",
]

# Everything but the errors is imported when it is first asked for: redis, pydantic and the rest take half a second,
# which a command that prints its help, or an application that may never submit, need not wait for.
_HOMES = {
    "AsyncClient": "async_client",
    "AsyncJob": "async_client",
    "AttemptData": "tape",
    "ChatCompletion": "completion",
    "ChatCompletionChunk": "chunk",
    "ChatJob": "job",
    "Client": "client",
    "EndData": "tape",
    "Entry": "tape",
    "ErrorInfo": "job",
    "Fold": "completion",
    "Job": "client",
    "JobView": "operations",
    "Overview": "operations",
    "Position": "tape",
    "QueuedData": "tape",
    "Settings": "settings",
    "Upstream": "settings",
    "Usage": "chunk",
    "WorkerView": "operations",
    "fold": "completion",
}

if not TYPE_CHECKING:  # a type checker that saw this would take every name, misspelt ones too

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
