"""Tokentape: durable streams for chat jobs.

Submit a chat job, and every chunk of its answer lands on the job's tape, a Redis Stream, from which any number of
readers follow it, live or later, and assemble the same completion.

    from tokentape import Client

    with Client() as client:
        job = client.submit(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}])
        for piece in job.text():
            print(piece, end="", flush=True)
        completion = job.result()
"""

from .async_client import AsyncClient, AsyncJob
from .chunk import ChatCompletionChunk
from .client import Client, Job
from .completion import ChatCompletion, Fold, fold
from .errors import (
    BadCursor,
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
)
from .job import ChatJob, ErrorInfo
from .operations import JobView, Overview
from .settings import Settings, Upstream
from .tape import AttemptData, EndData, Entry, QueuedData

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
    "QueuedData",
    "RedisUnavailable",
    "Restarted",
    "ResultTimeout",
    "Settings",
    "TokentapeError",
    "Upstream",
    "fold",
]
