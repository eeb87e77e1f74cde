"""What the `tokentape` command's exit codes mean, and which error has which.

  0  fine
  1  the job failed, was cancelled or expired; a demo that was not exact; a tape that cannot be read; an error that
     doctor found
  2  wrong usage, a request that was refused, a wrong setting, a part that is not installed
  3  no such job
  4  the wait was over before the job
  5  Redis did not answer
 74  what is printed could not be written, as where the disk is full
130  interrupted (Ctrl-C)
141  the reader of stdout has gone (as in `| head`), without a word
"""

from __future__ import annotations

from typing import Final

from .errors import (
    BadCursor,
    ConfigError,
    ExtraMissing,
    IdempotencyConflict,
    InvalidRequest,
    JobNotFound,
    RedisUnavailable,
    ResultTimeout,
    TokentapeError,
)

FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
TIMED_OUT: Final = 4
NO_REDIS: Final = 5
OUTPUT: Final = 74  # EX_IOERR of sysexits.h
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141


class OutputFailed(TokentapeError):
    """What a command prints, or a file of its results, could not be written. What it did is done."""


_OF_ERRORS: Final[tuple[tuple[type[TokentapeError], int], ...]] = (
    (InvalidRequest, USAGE),
    (IdempotencyConflict, USAGE),
    (BadCursor, USAGE),
    (ConfigError, USAGE),
    (ExtraMissing, USAGE),
    (JobNotFound, NOT_FOUND),
    (ResultTimeout, TIMED_OUT),
    (RedisUnavailable, NO_REDIS),
    (OutputFailed, OUTPUT),
)


def exit_code(error: TokentapeError) -> int:
    """The exit code of the command that met this error."""
    return next((code for kind, code in _OF_ERRORS if isinstance(error, kind)), FAILED)
