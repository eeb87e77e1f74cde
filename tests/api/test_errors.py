"""Every public error crosses processes: what is raised in a worker of a pool is what its caller catches."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

import tokentape
from tokentape import (
    BadCursor,
    ClientClosed,
    ConfigError,
    CorruptTape,
    ErrorInfo,
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

WHY = ErrorInfo(type="upstream_error", message="it broke", retryable=True, upstream_status=502)
ERRORS: list[TokentapeError] = [
    TokentapeError("something"),
    InvalidRequest("must be a text", field="messages.0.content"),
    IdempotencyConflict("job_1"),
    JobNotFound("job_1"),
    BadCursor(b"1-x"),
    CorruptTape("job_1", "1-7", "a hole"),
    UnknownFormat("job_1", "0-1", 2, 1),
    Restarted("job_1", 2, "worker_lost"),
    ResultTimeout("job_1", 1.5),
    RedisUnavailable("Redis refuses the login", login_refused=True),
    ClientClosed("the client is closed"),
    ConfigError("first", problems=["first", "second"]),
    ExtraMissing("the worker", "worker"),
    JobError("job_1", WHY),
    JobFailed("job_1", WHY),
    JobCancelled("job_1", WHY),
    JobExpired("job_1", WHY),
]
WAYS: dict[str, Callable[[TokentapeError], TokentapeError]] = {
    "pickle": lambda error: pickle.loads(pickle.dumps(error)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def test_no_public_error_is_left_out() -> None:
    public = {getattr(tokentape, name) for name in tokentape.__all__}

    assert {type(error) for error in ERRORS} == {
        one for one in public if isinstance(one, type) and issubclass(one, BaseException)
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_on_the_other_side(error: TokentapeError, way: str) -> None:
    error.add_note("said on the way")

    other = WAYS[way](error)

    assert other is not error
    assert type(other) is type(error)
    assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))


class OfAnApplication(JobFailed):
    """An application's own error, made of something else."""

    def __init__(self, order: int) -> None:
        super().__init__(f"job_{order}", WHY)
        self.order = order


def test_an_error_that_an_application_made_of_one_crosses_too() -> None:
    other = pickle.loads(pickle.dumps(OfAnApplication(7)))

    assert isinstance(other, OfAnApplication)
    assert (other.order, other.job_id, other.error) == (7, "job_7", WHY)
