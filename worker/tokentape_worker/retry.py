"""When to call again: pure decisions, no clock and no dice of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokentape.job import ErrorInfo

_BASE_S = 0.5
_MOST_S = 8.0


@dataclass(frozen=True)
class Retry:
    """What to do about a failed call.

    `again`: call once more after `wait_s`, keeping the slot. `later`: the same, giving the slot back. `stop`: the job
    has failed.
    """

    action: Literal["again", "later", "stop"]
    wait_s: float = 0.0


def decide(
    error: ErrorInfo,
    *,
    failures: int,
    budget: int,
    retry_after_s: float | None,
    left_s: float,
    hold_s: float,
    max_retry_after_s: float,
    dice: float,
) -> Retry:
    """Decide after a call failed.

    `failures` counts the calls that failed so far, this one included, `budget` how many may. `dice` is in [0, 1): full
    jitter spreads the calls of many workers over the whole backoff. An upstream that names a time (`retry_after_s`,
    seconds) asks for a wait: such a call is not among the failures, unless only one call is allowed at all. A wait past
    the job's deadline (`left_s`) is none: the job fails now, with what upstream said.
    """
    if not error.retryable or budget <= 1:
        return Retry("stop")
    if retry_after_s is not None:
        retry_after_s = min(retry_after_s, max_retry_after_s)
        wait_s = retry_after_s + dice * min(1.0, 0.1 * retry_after_s)
    else:
        if failures >= budget:
            return Retry("stop")
        wait_s = dice * min(_MOST_S, _BASE_S * 2.0 ** min(failures - 1, 10))
    if wait_s >= left_s:
        return Retry("stop")
    return Retry("later" if wait_s > hold_s else "again", wait_s)
