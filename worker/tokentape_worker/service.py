"""The worker service: one process, one event loop, hundreds to thousands of streams.

Built on rq.worker.BaseWorker for what makes it a worker to RQ's tools: registration, heartbeat, state, commands. What
RQ would do to deliver, recover and finish jobs is replaced by the queue side of this package.

    popper      slots first, then pop; waits at the bell while the queues are empty
    sweeper     see sweep.py; also runs what a lost reply hid, and stops what this worker no longer owns
    listener    cancel notices, so that a silent stream need not wait for the sweep
    publisher   see publisher.py
    lease       a thread, see lease.py
    presence    RQ's heartbeat, each few seconds, in a thread
    health      says each second that the loop turns, for probes and for systemd: see health.py

Stop: the first SIGTERM or SIGINT stops popping, lets streams finish for `grace_s`, puts the rest back and leaves; the
second puts back at once. Where the server does not answer, it goes without: after one lease the others take over what
it owned. A worker whose name is dead (reaped) drops its streams and joins again under a new one.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Coroutine
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from typing import Any, Final

import redis
import structlog
from redis.exceptions import AuthenticationError, RedisError
from rq.command import parse_payload
from rq.serializers import JSONSerializer
from rq.worker.base import BaseWorker, WorkerStatus

from tokentape import __version__, tape
from tokentape.connection import (
    TRANSIENT,
    AsyncServer,
    Server,
    connect,
    connect_async,
    end_task,
    passing,
    refused,
    unavailable,
)
from tokentape.job import PRIORITIES, ErrorInfo
from tokentape.masking import shown
from tokentape.queue import UPSTREAMS_FIELD, VERSION_FIELD, QueueKeys
from tokentape.settings import Settings
from tokentape.tape import Tape, text_of

from . import limits
from . import ownership as own
from .attempt import Services, through_outages
from .health import EVERY_S, Health
from .lease import Lease
from .ledger import Ledger, LedgerClosed
from .limits import Limits
from .ownership import Delivery, Ownership
from .packed import PackedServer
from .pipelined import Pipelined
from .publisher import Publisher
from .run import Run, Stop
from .sweep import Sweeper, release
from .threads import in_thread
from .upstreams import Upstreams

log: structlog.stdlib.BoundLogger = structlog.get_logger("tokentape.worker")

#: How often RQ's record of the worker is refreshed, and how long it outlives the last time.
_PRESENCE_S: Final = 5.0
_PRESENCE_TTL_S: Final = 60
#: How long a wait at the bell or for notices blocks; a bell that was missed costs this much.
_BLOCK_MS: Final = 1000
_ANNOUNCED_FOR_S: Final = 86_400
#: What a server may do to a command that is none of ours to end for: be away, or refuse (no replicas, a disk that is
#: full, a failover that ends a read). The background goes on, and nobody's streams are lost for it.
_TROUBLE: Final = (RedisError, OSError)
_REFUSED_PAUSE_S: Final = 0.5
#: How long a worker that was told to go at once tries to put back its jobs, where the server is slow or away.
_AT_ONCE_S: Final = 1.0


def new_worker_name() -> str:
    """A name that no worker has ever had: host, process and a random part."""
    host = "".join(char if char.isalnum() or char in "-." else "-" for char in socket.gethostname())[:64]
    return f"{host}.{os.getpid()}.{secrets.token_hex(4)}"


class Worker(BaseWorker):
    """A tokentape worker. `Worker(settings).serve()` blocks until it is stopped, and returns the exit code.

    Raises RedisUnavailable where no server answers at the start, unless `wait` is set; later outages are waited for.
    """

    def __init__(self, settings: Settings, *, burst: bool = False, wait: bool = False) -> None:
        self.settings = settings
        self.burst = burst
        self.stops_asked = 0
        #: Set once it takes jobs.
        self.ready = threading.Event()
        self.keys = QueueKeys(settings.namespace)
        super().__init__(
            [self.keys.queue_name(priority) for priority in PRIORITIES],
            name=new_worker_name(),
            connection=connect(settings.redis_url),
            serializer=JSONSerializer,
            worker_ttl=_PRESENCE_TTL_S,
            prepare_for_work=False,  # it would ask the server for our address: see take_address
        )
        self.hostname, self.pid = socket.gethostname(), os.getpid()
        try:
            self.connection.ping()
        except (RedisError, OSError) as error:
            if not passing(error):
                raise refused(error) from error
            if not wait or isinstance(error, AuthenticationError):
                raise unavailable(error) from error
            log.warning("server does not answer, to be waited for", error=str(error), url=shown(settings.redis_url))

    def serve(self) -> int:
        """Work until stopped, or with `burst` until the queues are empty. -> 0"""
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(self))
        return 0

    def _set_connection(self, connection: redis.Redis) -> redis.Redis:
        """As it is. RQ would let a silent server hold each call for as long as its own workers wait for jobs, a minute
        here, and a worker that stops in that time would too."""
        return connection

    def take_address(self) -> None:
        """Learn the address that the server sees us at, for RQ's list of workers."""
        self._set_ip_address(self.connection)

    # ---- what RQ's commands ask for

    def handle_payload(self, message: Any) -> None:
        """A command of RQ's (`rq.command.send_stop_job_command`, …). Called in RQ's pubsub thread."""
        payload = parse_payload(message)
        if payload.get("command") == "shutdown":
            self.request_stop()
        elif payload.get("command") in ("stop-job", "stop-execution") and payload.get("job_id"):
            self.on_stop_job(str(payload["job_id"]))

    def unsubscribe(self) -> None:
        """As RQ's, but in the order that wakes the thread: RQ's own waits a second for it at every exit."""
        if self.pubsub_thread and self.pubsub:
            self.pubsub_thread.stop()
            self.pubsub.unsubscribe()
            self.pubsub_thread.join(timeout=1)
            self.pubsub_thread = self.pubsub = None

    def on_stop_job(self, job_id: str) -> None:
        """Replaced by the service: RQ's stop is our cancel."""

    def request_stop(self, *_signal: Any) -> None:
        """Stop as at a SIGTERM; a second call puts everything back at once. From any thread, also before it serves."""
        self.stops_asked += 1
        self.on_stop()

    def on_stop(self) -> None:
        """Replaced by the service."""


async def _serve(worker: Worker) -> None:
    await _Service(worker).run()


class _Service:
    """What is alive while a worker serves. Made on the loop that it runs on."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._settings = settings = worker.settings
        self._keys = worker.keys
        self._runs: dict[tuple[str, int], tuple[Run, asyncio.Task[None]]] = {}
        self._slot_free = asyncio.Event()
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._last_call: asyncio.Task[None] | None = None
        self._registered = False
        self._signals = 0
        # The attempts that a crash may cost a job: the last one is not to be lost to a suspect beside it.
        attempts = min((upstream.max_attempts for upstream in settings.upstreams.values()), default=1)
        self._alone_after = max(2, attempts - 1)
        self._spawned: set[asyncio.Task[None]] = set()
        self._ownership = Ownership(self._keys, worker.name)
        queue_client = connect_async(settings.redis_url)
        self._own_tape_server = settings.tape_url not in (None, settings.redis_url)
        tape_client = connect_async(settings.tape_url or "") if self._own_tape_server else queue_client
        self._queue = AsyncServer(queue_client, ())
        self._tape_client = tape_client
        self._tapes = Pipelined(AsyncServer(tape_client, tape.SCRIPTS))
        self._packed = PackedServer(tape_client, tape.SCRIPTS)
        self._ledger = Ledger(Server(connect(settings.redis_url), (*own.SCRIPTS, *limits.SCRIPTS)))
        self._lease_server = Server(_brief(connect(settings.redis_url), settings), own.SCRIPTS)
        self._publisher = Publisher(
            self._packed,
            max_unpublished_bytes=settings.max_unpublished_bytes,
            resend_bytes=settings.resend_bytes,
            storage_wait_s=settings.storage_wait_s,
        )
        self._lease = self._new_lease()
        self._sweeper = Sweeper(settings, self._ledger, self._tapes, lambda: self._lease.steady)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._on_signal)

        def stop_job(job_id: str) -> None:
            loop.call_soon_threadsafe(lambda: self._spawn(self._cancel(job_id)))

        def stop() -> None:
            with suppress(RuntimeError):  # it has stopped
                loop.call_soon_threadsafe(self._on_signal)

        self._worker.on_stop_job = stop_job  # type: ignore[method-assign]
        self._worker.on_stop = stop  # type: ignore[method-assign]
        if self._worker.stops_asked:
            self._on_signal()
        async with AsyncExitStack() as stack:
            # From before the server is first asked until after it was left: an outage is no reason to be restarted.
            stack.push_async_callback(end_task, asyncio.create_task(self._tell_health(), name="health"))
            stack.push_async_callback(self._close)
            upstreams = await stack.enter_async_context(Upstreams(self._settings))
            self._services = Services(
                self._settings, self._tapes, self._publisher, upstreams, Limits(self._settings, self._ledger)
            )
            if not await self._join_unless_stopped():
                await self._in_time(self._leave())  # the lease may stand: only its reply was missing
                return
            log.info("worker ready", worker=self._worker.name, concurrency=self._settings.concurrency,
                     queues=[self._keys.queue_name(priority) for priority in PRIORITIES],
                     upstreams=sorted(self._settings.upstreams))  # fmt: skip
            self._worker.ready.set()
            await self._serve()

    async def _serve(self) -> None:
        background = [
            asyncio.create_task(self._publisher.run(), name="publisher"),
            asyncio.create_task(self._sweeps(), name="sweeper"),
            asyncio.create_task(self._listen(), name="listener"),
            asyncio.create_task(self._presence(), name="presence"),
        ]
        popper = asyncio.create_task(self._pop(), name="popper")
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        everything: list[asyncio.Task[Any]] = [popper, stopping, *background]
        try:
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            for task in everything:
                if task.done() and not task.cancelled() and (error := task.exception()):
                    log.error("worker fails", part=task.get_name(), error=repr(error))
                    raise error
            popper.cancel()
            await self._drain()
        finally:
            await end_task(*everything)

    # ---- popping

    async def _pop(self) -> None:
        """Slots first, then pop. Returns in burst mode when there is nothing left to do."""
        rung = await through_outages(self._last_bell)
        while True:
            free = self._settings.concurrency - len(self._runs)
            if free <= 0:
                self._slot_free.clear()
                await self._slot_free.wait()
                continue
            ownership = self._ownership
            try:
                reply = await self._ledger.one(ownership.pop(free, alone_after=self._alone_after), repeat=False)
            except _TROUBLE as error:
                # It may have moved jobs into our list: the sweep finds them there.
                await self._pause("pop", error)
                continue
            popped = own.deliveries(reply)
            for job in popped or ():
                self._start(ownership, job)
            if popped is None:
                await asyncio.sleep(self._settings.renewal_s)  # our lease is not live: renewed soon, or we are reaped
            elif not popped and not self._worker.burst:
                rung = await self._wait_at_bell(rung)
            elif not popped:
                if not self._runs:
                    return
                self._slot_free.clear()
                await self._slot_free.wait()

    async def _last_bell(self) -> str:
        return await self._newest(self._keys.bell)

    async def _wait_at_bell(self, rung: str) -> str:
        """Wait until something was enqueued since, a slot came free (burst), or a second has passed."""
        try:
            reply = await self._read(self._keys.bell, rung, 1)
        except _TROUBLE as error:
            await self._pause("wait for work", error)
            return rung
        rows = tape.rows_of(reply)
        return text_of(rows[-1][0]) if rows else rung

    def _start(self, ownership: Ownership, job: Delivery) -> None:
        key = (job.job_id, job.number)
        if key in self._runs:
            return
        run = Run(self._services, self._ledger, ownership, job)
        task = asyncio.create_task(run.execute(), name=f"run {job.job_id}")
        self._runs[key] = (run, task)
        task.add_done_callback(lambda done: self._finished(key, done))

    def _finished(self, key: tuple[str, int], task: asyncio.Task[None]) -> None:
        self._runs.pop(key, None)
        self._slot_free.set()
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, LedgerClosed):
            # A defect of ours. The job stays in our list, and the sweep runs it again; its attempts are counted.
            log.error("run failed", job_id=key[0], error=repr(error), exc_info=error)

    # ---- the background

    async def _sweeps(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_s)
            try:
                await self._reconcile()
                await self._sweeper.sweep(self._worker.name)
            except _TROUBLE as error:
                log.warning("sweep failed, to be repeated", error=str(error) or type(error).__name__)

    async def _reconcile(self) -> None:
        """Run what our list holds; stop what it holds no more."""
        ownership = self._ownership
        before = set(self._runs)
        owned = await self._sweeper.mine(ownership)
        keys = {(job.job_id, job.number) for job in owned}
        if ownership is not self._ownership or self._stopping.is_set():
            return
        for key in before - keys:
            if key in self._runs:
                self._runs[key][0].stop("fenced")
        for job in owned:
            if (job.job_id, job.number) not in before:
                self._start(ownership, job)

    async def _listen(self) -> None:
        """Cancel notices."""
        after = await through_outages(self._last_notice)
        while True:
            try:
                reply = await self._read(self._keys.notices, after, 1000)
            except _TROUBLE as error:
                await self._pause("listen for cancellations", error)
                continue
            for entry_id, fields in tape.rows_of(reply):
                after = text_of(entry_id)
                self._stop_job(fields.get(b"job", b"").decode(errors="replace"))

    @staticmethod
    async def _pause(what: str, error: Exception) -> None:
        """Before the next try. An outage is told by the sweep; that a server refuses is told here."""
        if not isinstance(error, TRANSIENT):
            log.warning("refused, to be repeated", what=what, error=str(error))
        await asyncio.sleep(0.1 if isinstance(error, TRANSIENT) else _REFUSED_PAUSE_S)

    async def _last_notice(self) -> str:
        return await self._newest(self._keys.notices)

    async def _newest(self, stream: str) -> str:
        (rows,) = await self._queue.run([("XREVRANGE", stream, "+", "-", "COUNT", 1)])
        return text_of(rows[0][0]) if rows else "0-0"

    async def _read(self, stream: str, after: str, count: int) -> Any:
        return await self._queue.wait_for(
            ("XREAD", "COUNT", count, "BLOCK", _BLOCK_MS, "STREAMS", stream, after), _BLOCK_MS
        )

    def _stop_job(self, job_id: str) -> None:
        """The job has ended on its tape: whatever of it runs here is fenced."""
        for (running, _), (run, _task) in list(self._runs.items()):
            if running == job_id:
                run.stop("fenced")

    async def _presence(self) -> None:
        """RQ's heartbeat and state, and what this worker's upstreams serve."""
        while True:
            await asyncio.sleep(_PRESENCE_S if self._registered else _REFUSED_PAUSE_S)
            if not self._registered:
                await self._register()
                continue
            with suppress(RedisError, OSError):
                await in_thread(self._beat, bool(self._runs))

    async def _tell_health(self) -> None:
        health = Health.of(self._settings.health_file, os.environ)
        stopping = False
        while health.wanted:
            try:
                health.tell(ready=self._lease.held and not stopping, stopping=stopping)
            except OSError as error:
                log.warning("health cannot be told", error=str(error))
            # A stop is told at once: it may be over before the next second is.
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await (asyncio.sleep(2 * EVERY_S) if stopping else self._stopping.wait())
            stopping = self._stopping.is_set()

    def _beat(self, busy: bool) -> None:
        self._worker.heartbeat(_PRESENCE_TTL_S)
        self._announce()
        state = WorkerStatus.BUSY if busy else WorkerStatus.IDLE
        if self._worker.get_state() != state:
            self._worker.set_state(state)

    # ---- the name

    def _new_lease(self) -> Lease:
        return Lease(
            self._lease_server,
            self._ownership,
            lease_s=self._settings.lease_s,
            renewal_s=self._settings.renewal_s,
            on_lost=self._on_lost,
        )

    async def _join(self) -> None:
        """Enter under the present name: the lease, RQ's registration, the upstreams that we serve."""
        await self._ledger.one(self._ownership.join(self._settings.lease_s))
        self._lease.start()
        await self._register()

    async def _register(self) -> None:
        """Enter RQ's list of workers. No job needs it: where the server is in trouble, the presence repeats it."""
        self._registered = False
        with suppress(*_TROUBLE):
            await in_thread(self._enter)
            self._registered = True

    def _enter(self) -> None:
        self._worker.unsubscribe()
        self._worker.take_address()
        self._worker.connection.delete(self._worker.key)  # of a try before this one; the name is nobody else's
        self._worker.register_birth()  # type: ignore[no-untyped-call]
        self._worker.subscribe()  # type: ignore[no-untyped-call]
        self._worker.set_state(WorkerStatus.IDLE)
        self._announce()

    def _announce(self) -> None:
        """What this worker's upstreams serve. Clients without a configuration refuse what nobody announces.

        RQ's record of the worker, which ends with it, gets their names too: `tokentape doctor` tells who serves what.
        """
        known: dict[Any, Any] = {
            VERSION_FIELD: __version__,
            UPSTREAMS_FIELD: json.dumps(sorted(self._settings.upstreams)),
        }
        self._worker.connection.hset(self._worker.key, mapping=known)
        self._worker.connection.expire(self._worker.key, _PRESENCE_TTL_S)
        served: dict[Any, Any] = {
            name: json.dumps(
                {
                    "models": upstream.models,
                    "dialect": upstream.dialect,
                    "drop_unsupported": upstream.drop_unsupported,
                    "seen_at": int(time.time()),
                }
            )
            for name, upstream in self._settings.upstreams.items()
        }
        if served:
            with self._worker.connection.pipeline() as both:  # at once: what stands there has an end
                both.hset(self._keys.upstreams, mapping=served)
                both.expire(self._keys.upstreams, _ANNOUNCED_FOR_S)
                both.execute()

    def _on_lost(self) -> None:
        """Reaped: others run our jobs now. Drop everything, and begin again under a new name."""
        log.warning("worker was held for dead", worker=self._worker.name, streams=len(self._runs))
        self._stop_all("lost")
        self._take_new_name()
        self._spawn(self._rejoin())

    def _take_new_name(self) -> None:
        self._worker.name = new_worker_name()
        self._ownership = Ownership(self._keys, self._worker.name)
        self._lease = self._new_lease()

    async def _join_unless_stopped(self) -> bool:
        """Join, however long the server is away. -> False where the worker was stopped first."""
        joining = asyncio.create_task(self._join())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([joining, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not joining.done():
                return False
            joining.result()
            return True
        finally:
            await end_task(joining, stopping)

    async def _rejoin(self) -> None:
        """Join under the new name; without it this worker is of no use, so it is tried until it works."""
        while not self._stopping.is_set():
            try:
                if await self._join_unless_stopped():
                    log.info("worker ready", worker=self._worker.name)
                return
            except _TROUBLE as error:
                log.warning("joining again failed, to be repeated", error=str(error))
                await asyncio.sleep(self._settings.renewal_s)
                self._lease.stop()
                self._take_new_name()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)

    async def _cancel(self, job_id: str) -> None:
        error = ErrorInfo(type="cancelled", message="stopped by an operator of the queue")
        settle = Tape(self._settings.namespace, job_id).settle("cancelled", error, self._settings.retention_s)
        await through_outages(lambda: self._tapes.run([settle]))
        self._stop_job(job_id)

    # ---- the stop

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals == 1:
            log.info("worker stops", streams=len(self._runs), grace_s=self._settings.grace_s)
            self._stopping.set()
            self._spawn(self._tell_of_stop())
        else:
            self._at_once.set()

    async def _tell_of_stop(self) -> None:
        """RQ's record of the worker says since when it stops."""
        self._worker._shutdown_requested_date = datetime.now(UTC)  # noqa: SLF001  (RQ's name for it)
        with suppress(*_TROUBLE):
            await in_thread(self._worker.set_shutdown_requested_date)

    async def _drain(self) -> None:
        """Let streams finish, put the rest back, leave."""
        self._stopping.set()
        runs = [task for _, task in self._runs.values()]
        if runs:
            await _first_of(asyncio.wait(runs), self._at_once.wait(), asyncio.sleep(self._settings.grace_s))
        self._last_call = asyncio.create_task(self._patience(1.0), name="last call")
        self._stop_all("drain")
        if runs:
            # What is under way is one round trip each, unless a server is away. What is late is left in our list: the
            # other half of the time is for putting back the whole of it.
            await _first_of(asyncio.wait(runs), self._patience(0.5))
            await end_task(*runs)
        await self._in_time(self._leave())
        if self._last_call.done():
            log.warning("worker left without the server's answer", worker=self._worker.name)

    async def _leave(self) -> None:
        """Put back what the list still holds, and drop the lease."""
        self._lease.stop()
        await release(self._ledger, self._ownership, "leave")
        log.info("worker left", worker=self._worker.name)

    async def _patience(self, share: float) -> None:
        """Ends when waiting for the server helps nobody any more: after a lease the others take over; and sooner where
        we were told to go at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(share * max(self._settings.lease_s, _AT_ONCE_S)):
                await self._at_once.wait()
                await asyncio.sleep(share * _AT_ONCE_S)

    async def _in_time(self, part: Awaitable[Any]) -> None:
        """Do a part of the leaving, as long as there is time. What trouble the server is in no longer matters."""
        if self._last_call is None:
            self._last_call = asyncio.create_task(self._patience(1.0), name="last call")
        doing = asyncio.ensure_future(part)
        await asyncio.wait([doing, self._last_call], return_when=asyncio.FIRST_COMPLETED)
        await end_task(doing)
        if not doing.cancelled() and (error := doing.exception()) and not isinstance(error, (*_TROUBLE, LedgerClosed)):
            raise error

    def _stop_all(self, reason: Stop) -> None:
        # The newest first: the oldest is put back last, and stands first in its queue.
        for run, _ in reversed(list(self._runs.values())):
            run.stop(reason)

    async def _close(self) -> None:
        self._lease.stop()
        await self._in_time(in_thread(self._worker.teardown))
        await self._tapes.close()
        await self._in_time(in_thread(self._ledger.close))
        await self._packed.close()
        # Each waits until what it had to send is sent.
        await self._in_time(self._queue.client.aclose())
        if self._own_tape_server:
            await self._in_time(self._tape_client.aclose())
        if self._last_call is not None:
            await end_task(self._last_call)


async def _first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Until the first of them is over; the others are ended."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end_task(*tasks)


def _brief(client: redis.Redis, settings: Settings) -> redis.Redis:
    """A client that gives up soon: a renewal that hangs is worth less than the next one."""
    client.connection_pool.connection_kwargs["socket_timeout"] = settings.renewal_s
    client.connection_pool.connection_kwargs["socket_connect_timeout"] = settings.renewal_s
    return client


def _loop_factory() -> Any:
    """uvloop's, where it is installed (it is not on Windows): half the CPU per read."""
    with suppress(ImportError):
        return importlib.import_module("uvloop").new_event_loop
    return None
