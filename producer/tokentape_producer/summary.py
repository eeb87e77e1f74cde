"""What a run came to: exit code, JSON, and words for a person."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from tokentape.errors import ConfigError, InvalidRequest, RedisUnavailable, TokentapeError

from .batch import Counts
from .input_file import BadInput
from .output_files import BatchConflict
from .progress import clock_time

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_EXPIRED: Final = 4
EXIT_NO_REDIS: Final = 5


class Summary:
    """What a run came to."""

    def __init__(self, out: Path, errors: Path) -> None:
        self.out = out
        self.errors = errors
        self.batch_id: str | None = None
        self.counts: Counts | None = None
        self.interrupted = False
        self.error: TokentapeError | None = None
        self._began_at = time.monotonic()
        self._before = 0

    def begin(self, batch_id: str, counts: Counts) -> None:
        self.batch_id, self.counts, self._before = batch_id, counts, counts.answered

    @property
    def status(self) -> str:
        if self.interrupted:
            return "interrupted"
        return "completed" if self.error is None else "stopped"

    @property
    def exit_code(self) -> int:
        """Of a run that answered every line."""
        counts = self.counts or Counts(0)
        if counts.expired:
            return EXIT_EXPIRED
        return 0 if counts.completed == counts.total else EXIT_FAILED

    def as_dict(self) -> dict[str, Any]:
        counts = self.counts or Counts(0)
        bad = self.error if isinstance(self.error, BadInput) else BadInput("")
        return {
            "object": "batch_run",
            "batch_id": self.batch_id,
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
            "error": str(self.error) if self.error else None,
            "bad_lines": [
                {"code": line.code, "message": line.message, "param": line.field, "line": line.number}
                for line in bad.lines
            ],
        }

    def text(self) -> str:
        """For a person."""
        if self.error is not None:
            hint = "\nThe same command goes on from here." if self.counts is not None else ""
            return f"tokentape batch: {self.error}{hint}"
        if self.counts is None:
            return "Interrupted before anything was enqueued."
        counts = self.counts
        parts = [f"{counts.completed:,} completed"]
        parts += [f"{n:,} {name}" for name in ("failed", "cancelled", "expired") if (n := getattr(counts, name))]
        done = f"{counts.answered:,} of {counts.total:,} lines answered: {', '.join(parts)}"
        if self.interrupted:
            under_way = f"; {counts.in_flight:,} under way go on" if counts.in_flight else ""
            return f"Interrupted. {done}{under_way}. The same command goes on from here."
        if self._before == counts.total:
            return f"Nothing to do: {done} by earlier runs."
        files = str(self.out) if counts.completed == counts.total else f"{self.out}, {self.errors}"
        return f"{done} in {clock_time(time.monotonic() - self._began_at)}. {files}"


def exit_code_of(error: TokentapeError) -> int:
    """What the command ends with after an error."""
    if isinstance(error, RedisUnavailable):
        return EXIT_NO_REDIS
    return EXIT_USAGE if isinstance(error, BadInput | BatchConflict | ConfigError | InvalidRequest) else EXIT_FAILED
