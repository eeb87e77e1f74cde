"""The lease: how a worker shows that it lives, and how it learns that the others hold it for dead.

A thread with a connection of its own renews it, so that neither a long computation in the loop nor a slow ledger lets
it lapse; but only while the event loop still answers, so that a worker whose loop is wedged does lose it. It is
renewed only while its entry stands: a worker that was reaped is dead for good under this name.

After an outage every lease is past its end, on a server that was just as deaf to the healthy workers. So a reaper must
have renewed its own lease without a gap for one lease length (`steady`) before it judges others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from tokentape.connection import Server

from .ownership import Ownership


class Lease:
    """One worker name's lease. `on_lost` is called on the loop, once, when the name is dead for good."""

    def __init__(
        self,
        server: Server,
        ownership: Ownership,
        *,
        lease_s: float,
        renewal_s: float,
        on_lost: Callable[[], None],
    ) -> None:
        self._server = server
        self._ownership = ownership
        self._lease_s = lease_s
        self._renewal_s = renewal_s
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._renewed_at = self._steady_since = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="tokentape-lease", daemon=True)

    def start(self) -> None:
        """Begin to renew; the entry must stand already (`join`)."""
        self._renewed_at = self._steady_since = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Renew no more. Does not wait: a renewal under way may still land, which harms nobody."""
        self._stop.set()

    @property
    def held(self) -> bool:
        """Whether this worker may take jobs, as far as it knows without asking: its lease was renewed in time."""
        return self._thread.is_alive() and time.monotonic() - self._renewed_at < self._lease_s

    @property
    def steady(self) -> bool:
        """Whether this worker may judge others."""
        now = time.monotonic()
        return now - self._renewed_at < 2 * self._renewal_s and now - self._steady_since >= self._lease_s

    def _work(self) -> None:
        while not self._stop.wait(self._renewal_s):
            if not self._loop_answers():
                continue
            try:
                (alive,) = self._server.run([self._ownership.renew(self._lease_s)])
            except (RedisError, OSError):  # whatever it is: only an answer ends this thread
                continue
            if not alive:
                self._call(self._on_lost)
                return
            now = time.monotonic()
            if now - self._renewed_at > 2 * self._renewal_s:
                self._steady_since = now
            self._renewed_at = now

    def _loop_answers(self) -> bool:
        answered = threading.Event()
        return self._call(answered.set) and answered.wait(self._renewal_s)

    def _call(self, function: Callable[[], object]) -> bool:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed
            return False
        return True
