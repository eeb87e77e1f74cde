"""A worker on a thread of this process, for tests: as quick to start as they want it, and gone with them.

`tokentape.testing` finds it through the entry point `tokentape.parts`, so that the library does not import the service.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Any, ClassVar, Final, Self

import structlog

from tokentape import RedisUnavailable, Settings

from .service import Worker

#: A worker is ready some 20 ms after the server answers.
_START_WAIT_S: Final = 30.0
#: Beyond the grace: streams are put back, the lease and RQ's registration are given up.
_LEAVE_WAIT_S: Final = 30.0


class EmbeddedWorker:
    """A worker of this process. `with EmbeddedWorker(settings): …`, or start() and stop().

    `quiet`: while it runs, nothing below `log_level` is logged, unless this process has set structlog up itself; a
    structlog that nobody has set up prints everything.
    """

    def __init__(self, settings: Settings, *, quiet: bool = False) -> None:
        self._settings = settings
        self._quiet = quiet
        self._worker: Worker | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def worker(self) -> Worker:
        """The service that runs on the thread."""
        if self._worker is None:
            raise RuntimeError("the embedded worker is not started")
        return self._worker

    @property
    def alive(self) -> bool:
        """Whether it runs: False before the start, after the stop, and where it failed."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start it, and wait until it takes jobs. Raises RedisUnavailable, ConfigError; nothing runs then."""
        if self._worker is not None:
            raise RuntimeError("the embedded worker was started already")
        worker = self._worker = Worker(self._settings)
        if self._quiet:
            _Quiet.begin(self._settings.log_level)
        self._thread = threading.Thread(target=self._serve, args=(worker,), name="tokentape-worker", daemon=True)
        self._thread.start()
        ready = worker.ready.wait(_START_WAIT_S)
        if self._error is not None or not ready:
            self.stop_at_once()
            raise RedisUnavailable("the embedded worker did not come up in time")

    def stop(self) -> None:
        """As SIGTERM does: streams may finish for `grace_s` seconds, the rest is put back. Waits. Safe to repeat.

        Raises what the worker ended with, where it did not end well.
        """
        self._stop(1, self._settings.grace_s)

    def stop_at_once(self) -> None:
        """As a second SIGTERM does: every stream is put back and starts over elsewhere. Waits. Safe to repeat."""
        self._stop(2, 0)

    def _stop(self, times: int, grace_s: float) -> None:
        worker, thread = self._worker, self._thread
        if worker is None or thread is None:
            return
        for _ in range(times):
            worker.request_stop()
        thread.join(timeout=grace_s + _LEAVE_WAIT_S)
        if thread.is_alive():
            raise RuntimeError("the embedded worker did not stop")
        self._worker = self._thread = None
        if self._quiet:
            _Quiet.end()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _serve(self, worker: Worker) -> None:
        try:
            worker.serve()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
        finally:
            worker.ready.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop_at_once()


class _Quiet:
    """Sets the level of a structlog that nobody has set up, for as long as any quiet worker runs."""

    _lock: ClassVar = threading.Lock()
    _workers: ClassVar = 0
    _ours: ClassVar = False

    @classmethod
    def begin(cls, level: str) -> None:
        with cls._lock:
            cls._workers += 1
            if not structlog.is_configured():
                number: Any = logging.getLevelNamesMapping()[level.upper()]
                # Its own renderer would print the locals of a traceback, where rich is installed: prompts, and keys.
                plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
                structlog.configure(
                    wrapper_class=structlog.make_filtering_bound_logger(number),
                    processors=[*structlog.get_config()["processors"][:-1], plain],
                )
                cls._ours = True

    @classmethod
    def end(cls) -> None:
        with cls._lock:
            cls._workers -= 1
            if cls._ours and not cls._workers:
                structlog.reset_defaults()
                cls._ours = False
