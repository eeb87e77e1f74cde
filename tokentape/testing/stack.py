"""Stack: a server, a chat API and a worker, all real, for one test.

Each has a namespace of its own, so that many share a server without meeting, and nothing is ever flushed.

The worker is found through an entry point: the library does not import the service.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from ..embedded import EmbeddedServer
from ..errors import ExtraMissing
from ..script import Script
from ..settings import Settings

if TYPE_CHECKING:
    from ..async_client import AsyncClient
    from ..client import Client
    from ..simulator import SimulatorThread

T = TypeVar("T")


class _Worker(Protocol):
    """What the worker's package has under the entry point `tokentape.parts: worker`."""

    def start(self) -> None: ...

    def stop_at_once(self) -> None: ...


class Stack:
    """A server, the simulator and a worker. `with Stack() as stack: …`, or start() and stop().

    `upstreams`: names of upstreams, all of which are the simulator; or options by name, as in
    `{"default": {"max_attempts": 1}}`. `worker=False`: jobs stay queued until start_worker(). `server`: one that runs,
    to be shared; it is not stopped. `settings`: by name, as in `lease_s=1`; `log_level` is "error" unless given.
    """

    def __init__(
        self,
        *,
        upstreams: Iterable[str] | Mapping[str, Mapping[str, Any]] = ("default",),
        worker: bool = True,
        server: EmbeddedServer | None = None,
        **settings: Any,
    ) -> None:
        self._upstreams = dict(upstreams) if isinstance(upstreams, Mapping) else {name: {} for name in upstreams}
        self._wants_worker = worker
        self._shared_server = server
        self._overrides = settings
        self._running = contextlib.ExitStack()
        self._server: EmbeddedServer | None = None
        self._simulator: SimulatorThread | None = None
        self._settings: Settings | None = None
        self._worker: _Worker | None = None

    # ---- its life

    def start(self) -> None:
        """Start all parts and wait until jobs run.

        Raises ExtraMissing without the extra `testing`, RedisUnavailable where the server does not come up, ConfigError
        for a wrong setting; nothing is left behind then.
        """
        if self._settings is not None:
            raise RuntimeError("the stack was started already")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        from ..simulator import SimulatorThread  # noqa: PLC0415 - needs the extra, and says so

        self._server = self._shared_server or self._running.enter_context(EmbeddedServer())
        self._simulator = self._running.enter_context(SimulatorThread())
        base = {"base_url": self._simulator.base_url}
        values: dict[str, Any] = {
            "redis_url": self._server.url,
            "namespace": f"test{secrets.token_hex(6)}",
            "log_level": "error",
            "upstreams": {name: {**base, **options} for name, options in self._upstreams.items()},
        }
        self._settings = Settings.load({}, **{**values, **self._overrides})
        if self._wants_worker:
            self.start_worker()

    def stop(self) -> None:
        """Stop all parts, and close the clients that client() gave. Streams are cut. Safe to repeat."""
        self._settings = None
        try:
            # First, while the server and the chat API are there: it leaves in good order.
            self.stop_worker()
        finally:
            self._running.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # ---- how to reach it

    @property
    def settings(self) -> Settings:
        """What its clients and its worker run with."""
        return _there(self._settings)

    @property
    def redis_url(self) -> str:
        """The server, redis://…; keys and queues begin with `settings.namespace`."""
        return self.settings.redis_url

    @property
    def environ(self) -> dict[str, str]:
        """What `Client()` reads from the environment, here or in another process, to reach this stack."""
        return {"TOKENTAPE_REDIS_URL": self.redis_url, "TOKENTAPE_NAMESPACE": self.settings.namespace}

    @property
    def server(self) -> EmbeddedServer:
        """The server: `kill()` and `restart()` are an outage."""
        return _there(self._server)

    def client(self) -> Client:
        """A new client. Closed when the stack stops; closing it before is fine."""
        from ..client import Client  # noqa: PLC0415 - half of the imports of this module

        return self._running.enter_context(Client(settings=self.settings))

    def async_client(self) -> AsyncClient:
        """A new asyncio client, for the running loop: `async with stack.async_client() as client`."""
        from ..async_client import AsyncClient  # noqa: PLC0415 - as above

        return AsyncClient(settings=self.settings)

    # ---- the chat API

    @property
    def simulator(self) -> SimulatorThread:
        """The chat API: `calls(request)` counts, `base_url` leads to it."""
        return _there(self._simulator)

    def script(self, **fields: Any) -> Script:
        """Set how calls are answered from now on; a field of `tokentape.testing.Script` that is not named is as by
        default. One request overrides it with its own field `simulate`.

        `text` is what is said; `interval_ms` paces it; `fault` makes it go wrong ("status", "disconnect", …) the first
        `fault_times` times. Raises ValueError for a wrong field. Safe to repeat.
        """
        script = Script(**fields)
        self.simulator.defaults = script
        return script

    # ---- the worker

    def start_worker(self) -> None:
        """Start the worker that was left out, or stopped; nothing happens where it runs."""
        if self._worker is None:
            worker = _worker_of(self.settings)
            worker.start()
            self._worker = worker

    def stop_worker(self) -> None:
        """Stop the worker at once: its streams go back to the queue, and start over with the next one. Safe to repeat.

        What a deploy does to those that outlast their grace: readers meet Restarted.
        """
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop_at_once()

    def restart_worker(self) -> None:
        """stop_worker(), then start_worker()."""
        self.stop_worker()
        self.start_worker()


def _there(part: T | None) -> T:
    if part is None:
        raise RuntimeError("the stack is not started")
    return part


def _worker_of(settings: Settings) -> _Worker:
    """A worker that is not started. Raises ExtraMissing where its packages are not installed."""
    try:
        (point,) = entry_points(group="tokentape.parts", name="worker")
        embedded = point.load()
    except (ValueError, ImportError) as error:
        raise ExtraMissing("the stack's worker", "testing") from error
    worker: _Worker = embedded(settings, quiet=True)
    return worker
