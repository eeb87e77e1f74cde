"""Says why nothing comes, to somebody who waits for a job: no worker, a queue, a retry, a server that is away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from .client import Client
from .errors import RedisUnavailable, TokentapeError

#: Nothing for so long is worth a word.
PATIENCE_S: Final = 3.0


class Waiting:
    """Looks every few seconds while its block runs, unless something `moved` meanwhile. Tells each reason once."""

    def __init__(
        self, client: Client, job_id: str, tell: Callable[[str], None], *, patience_s: float = PATIENCE_S
    ) -> None:
        self._client = client
        self._job_id = job_id
        self._tell = tell
        self._patience_s = patience_s
        self._moved = False
        self._over = threading.Event()

    def moved(self) -> None:
        """Something came."""
        self._moved = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="waiting", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()

    def _watch(self) -> None:
        told: set[str] = set()
        while not self._over.wait(self._patience_s):
            if self._moved:
                self._moved = False
                continue
            reason = self._reason()
            if reason is not None and reason not in told and not self._over.is_set():
                told.add(reason)
                self._tell(reason)

    def _reason(self) -> str | None:
        """None where there is nothing to say: an answer takes the time that it takes."""
        try:
            status, overview = self._client.status(self._job_id).status, self._client.overview()
        except RedisUnavailable:
            return "the server does not answer, trying again"
        except TokentapeError:
            return None  # whoever waits meets it, or has ended
        if status == "waiting":
            return "the job waits for a retry, or for its turn at the upstream"
        if status != "queued":
            return None
        if not any(worker.lease_s > 0 for worker in overview.workers):
            return "no worker is running: start one with `tokentape worker`"
        return "the job is queued: all workers are busy"
