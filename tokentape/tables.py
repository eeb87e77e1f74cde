"""Jobs and the state of the service as plain text, for people. Whoever wants facts takes `--json`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from .operations import JobView, Overview, WorkerView
from .printable import printable


def job_table(view: JobView) -> str:
    """One job, a line for each thing that is known of it."""
    rows = [
        ("job", view.id),
        ("status", view.status),
        ("model", view.model),
        ("upstream", view.upstream),
        ("priority", view.priority),
        ("metadata", ", ".join(f"{name}={value}" for name, value in view.metadata.items())),
        ("attempts", str(view.attempts)),
        ("created", _moment(view.created_at)),
        ("started", _moment(view.started_at)),
        ("ended", _moment(view.ended_at)),
        ("deadline", _moment(view.deadline_at)),
        ("last entry", view.last_entry_id),
    ]
    if view.usage is not None:
        rows.append(("tokens", f"{view.usage.prompt_tokens} prompt, {view.usage.completion_tokens} completion"))
    if view.error is not None:
        again = "a retry may help" if view.error.retryable else "a retry will not help"
        rows.append(("error", f"{view.error.type}: {' '.join(view.error.message.split())} ({again})"))
    return columns((name, printable(value)) for name, value in rows if value)


def overview_table(overview: Overview) -> str:
    """Queues and workers, and a word where nothing can move."""
    queued = ", ".join(f"{count} {name}" for name, count in overview.queued.items())
    oldest = "" if overview.oldest_queued_s is None else f"; the oldest for {overview.oldest_queued_s:.1f} s"
    rows = [
        ("queued", queued + oldest),
        ("running", str(overview.running)),
        ("waiting", f"{overview.waiting} for a retry or their turn"),
        ("open", f"{overview.open} in all, those that ended just now included"),
    ]
    if overview.suspects:
        rows.append(("suspects", f"{overview.suspects} lost with their worker more than once, run a few at a time"))
    if not overview.workers:
        rows.append(("workers", "none: nothing runs until one is started (tokentape worker)"))
        return columns(rows)
    alive = any(worker.lease_s > 0 for worker in overview.workers)
    none_alive = ", and no lease holds: nothing runs until a worker is started (tokentape worker)"
    rows.append(("workers", f"{len(overview.workers)}{'' if alive else none_alive}"))
    return f"{columns(rows)}\n\n{columns([('WORKER', 'JOBS', 'LEASE'), *map(_worker_row, overview.workers)])}"


def columns(rows: Iterable[Sequence[str]]) -> str:
    """Rows with their columns in line. The last column is not padded."""
    lines = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)), row[-1]])
        for row in lines
    )


def _worker_row(worker: WorkerView) -> tuple[str, str, str]:
    dead = worker.lease_s < 0
    lease = f"ran out {-worker.lease_s:.1f} s ago: dead" if dead else f"holds for {worker.lease_s:.1f} s"
    return worker.name, str(worker.jobs), lease


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", " UTC")
