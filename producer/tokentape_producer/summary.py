"""What a run came to: exit code, JSON, and words for a person. An error is told by `tokentape.cli`, as all are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tokentape import exit_codes
from tokentape.errors import InvalidRequest, TokentapeError

from .batch import Counts
from .progress import clock_time

_GOES_ON = "The same command goes on from here."


class Summary:
    """What a run came to. `error` is what ended it before every line was answered."""

    def __init__(self, out: Path, errors: Path) -> None:
        self.out = out
        self.errors = errors
        self.interrupted = False
        self.error: TokentapeError | None = None
        self._batch_id: str | None = None
        self._counts = Counts(0)
        self._began_at = time.monotonic()
        self._before = 0

    def begin(self, batch_id: str, counts: Counts) -> None:
        self._batch_id, self._counts, self._before = batch_id, counts, counts.answered

    @property
    def ran(self) -> bool:
        """Whether there is anything to tell: lines that are answered, or that were enqueued."""
        return self._counts.begun

    @property
    def status(self) -> str:
        if self.interrupted:
            return "interrupted"
        return "completed" if self.error is None else "stopped"

    @property
    def exit_code(self) -> int:
        """Of a run that answered every line."""
        if self._counts.expired:
            return exit_codes.TIMED_OUT
        return 0 if self._counts.completed == self._counts.total else exit_codes.FAILED

    def as_dict(self) -> dict[str, Any]:
        counts = self._counts
        return {
            "object": "batch_run",
            "batch_id": self._batch_id,
            "status": self.status,
            "lines": counts.total,
            "completed": counts.completed,
            "failed": counts.failed,
            "cancelled": counts.cancelled,
            "expired": counts.expired,
            "answered_before": self._before,
            "output": str(self.out),
            "errors": str(self.errors),
            "seconds": round(time.monotonic() - self._began_at, 3),
        }

    def text(self) -> str | None:
        """For a person. None where an error says it all."""
        counts = self._counts
        if not self.ran:
            return "Interrupted before anything was enqueued." if self.interrupted else None
        parts = [f"{n:,} {name}" for name in ("completed", "failed", "cancelled", "expired")
                 if (n := getattr(counts, name))]  # fmt: skip
        done = f"{counts.answered:,} of {counts.total:,} lines answered"
        if parts:
            done += f": {', '.join(parts)}"
        if self.interrupted:
            under_way = (
                f"; {counts.in_flight:,} under way go on (tokentape batch cancel ends them)" if counts.in_flight else ""
            )
            return f"Interrupted. {done}{under_way}. {_GOES_ON}"
        if self.error is not None:
            # What was refused is refused again.
            return f"{done}." if isinstance(self.error, InvalidRequest) else f"{done}. {_GOES_ON}"
        if self._before == counts.total:
            return f"Nothing to do: {done} by earlier runs."
        files = str(self.out) if counts.completed == counts.total else f"{self.out}, {self.errors}"
        return f"{done} in {clock_time(time.monotonic() - self._began_at)}. {files}"
