"""`tokentape up`: the whole service on this machine, as processes of one that looks after them.

    server         Valkey, embedded; none where the settings name one
    simulator      a scripted chat API; none where the settings name an upstream, or OPENAI_* does
    worker-1 …     the workers

All are started again when they end (keeper.py; the server under its old address), and all end with this process,
however that ends: a pipe or a socket of theirs closes then (child.py, _supervisor.py).

Stop: the first Ctrl-C, SIGTERM or SIGHUP lets streams finish for `grace_s`, as each worker does by itself; the second
puts jobs back at once; a third, or a second one while the server starts, leaves the rest to those pipes. Workers go
first, then the simulator that answers them, then the server that they put their jobs back to.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from . import exit_codes
from .child import ChildFailed
from .connection import connect, end_task, patiently
from .endpoint import Endpoint, EndpointUnusable, Publication, find
from .keeper import Keeper
from .masking import shown
from .process_log import ProcessLog
from .settings import ENV_PREFIX, Loaded, Settings
from .watched_server import WatchedServer

#: Slow enough to be read as it comes.
_SIMULATOR: Final = ("simulate", "--json", "--interval-ms=40", "--first-token-ms=150")
_SIMULATOR_WAIT_S: Final = 60.0
#: Beyond its grace and its lease, for a worker to leave; and for one that was told to go at once.
_LEAVE_WAIT_S: Final = 10.0
_AT_ONCE_WAIT_S: Final = 4.0


@dataclass(frozen=True)
class Plan:
    """What is to run."""

    #: As read from environment and file, without looking for an endpoint.
    loaded: Loaded
    workers: int
    #: Where the embedded server keeps everything; None: it keeps nothing.
    data: Path | None

    @property
    def settings(self) -> Settings:
        return self.loaded.settings

    @property
    def embeds(self) -> bool:
        """Whether the server is ours: nothing names another."""
        return self.loaded.sources.keys().isdisjoint(("redis_url", "tape_url"))

    @property
    def simulates(self) -> bool:
        """Whether the simulator answers: no file names an upstream, and OPENAI_* is not set."""
        return not any(name == "upstreams" or name.startswith("upstreams.") for name in self.loaded.sources)


class Up:
    """One run of `tokentape up`. The log is told what goes on; stdout gets how to reach the server."""

    def __init__(self, plan: Plan, log: ProcessLog, *, as_json: bool = False) -> None:
        self._plan = plan
        self._log = log
        self._as_json = as_json
        self._environ = {**os.environ, f"{ENV_PREFIX}LOG_FORMAT": "json"}
        self._exit_code: int | None = None
        self._signals = 0
        self._may_wait = False
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()
        #: What is to run for as long as we do.
        self._tasks: list[asyncio.Task[None]] = []
        self._workers: list[Keeper] = []
        self._publication: Publication | None = None

    def run(self) -> int:
        """Run until stopped. -> the exit code

        Raises RedisUnavailable where the server that is named does not answer, ConfigError where the workers find their
        settings wrong, ChildFailed where a part cannot be started or kept. Everything has ended then.
        """
        return asyncio.run(self._run())

    async def _run(self) -> int:
        self._hear_signals()
        async with AsyncExitStack() as stack:
            url = await self._start_server(stack)
            self._may_wait = True
            if self._plan.simulates and not self._stop.is_set():
                await self._start_simulator(stack)
            if not self._stop.is_set():
                self._start_workers(stack)
                self._announce(url)
            await self._until_stopped()
        self._log.say("everything has ended")
        return self._exit_code or 0

    # ---- the parts

    async def _start_server(self, stack: AsyncExitStack) -> str:
        settings = self._plan.settings
        if not self._plan.embeds:
            # The default where only the tapes' server is named.
            await asyncio.to_thread(patiently, connect(settings.redis_url).ping, settings.redis_wait_s)
            self._log.say("server answers", url=shown(settings.redis_url))
            return settings.redis_url
        self._tell_of_another()
        server = WatchedServer(self._plan.data, self._log)
        stack.push_async_callback(server.stop)
        await server.start()
        kept = f"everything is kept in {self._plan.data}" if self._plan.data else "nothing is kept (--data DIR does)"
        self._log.say(f"server started: Valkey at {shown(server.url)}, {kept}", pid=server.pid)
        self._environ[f"{ENV_PREFIX}REDIS_URL"] = server.url
        self._publish(stack, server.url)
        stack.push_async_callback(end_task, self._spawn(server.watch()))
        return server.url

    def _tell_of_another(self) -> None:
        """Before anything waits for what it holds, as its data."""
        with contextlib.suppress(EndpointUnusable):
            if (other := find()) is not None:
                what = f"process {other.pid}, server at {shown(other.redis_url)}"
                self._log.say(f"another `tokentape up` runs already: {what}", level="warning")

    def _publish(self, stack: AsyncExitStack, url: str) -> None:
        """Let the other commands find the server. It runs without that too."""
        try:
            self._publication = Publication.make(Endpoint(url, self._plan.settings.namespace, os.getpid()))
        except EndpointUnusable as error:
            self._log.say(f"other commands find this server by the export line only: {error}", level="warning")
        else:
            stack.callback(self._publication.remove)

    async def _start_simulator(self, stack: AsyncExitStack) -> None:
        greeting: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        keeper = Keeper(
            *("simulator", "tokentape.cli", *_SIMULATOR, "--port=0"),
            env=self._environ,
            log=self._log,
            greeting=greeting,
        )
        task = self._spawn(keeper.keep())
        stack.push_async_callback(self._end, [keeper], [task])
        await self._first_of([greeting, task], _SIMULATOR_WAIT_S)
        if self._stop.is_set():
            return
        if not greeting.done():
            raise ChildFailed(f"the simulator did not start within {_SIMULATOR_WAIT_S:g} s")
        base_url: str = json.loads(greeting.result())["base_url"]
        port = base_url.rpartition(":")[2].partition("/")[0]
        keeper.arguments = (*_SIMULATOR, f"--port={port}")  # where the workers look for it
        self._environ["OPENAI_BASE_URL"] = base_url
        for name in ("NO_PROXY", "no_proxy"):
            self._environ[name] = f"127.0.0.1,{self._environ.get(name, '')}".rstrip(",")
        self._log.say(
            f"the simulator answers, at {base_url}, and no model: no configuration file names an upstream, and neither"
            " OPENAI_API_KEY nor OPENAI_BASE_URL is set"
        )

    def _start_workers(self, stack: AsyncExitStack) -> None:
        self._workers = [
            Keeper(f"worker-{number}", "tokentape_worker", env=self._environ, log=self._log)
            for number in range(1, self._plan.workers + 1)
        ]
        others = list(self._tasks)
        tasks = [self._spawn(worker.keep()) for worker in self._workers]
        stack.push_async_callback(self._drain, tasks, others)
        telling = asyncio.create_task(self._tell_when_ready())
        stack.push_async_callback(end_task, telling)

    def _announce(self, url: str) -> None:
        """Say how to reach it: on stdout the facts, for people the rest."""
        namespace = self._plan.settings.namespace
        if self._as_json:
            facts = {
                "pid": os.getpid(),
                "redis_url": url if self._plan.embeds else shown(url),
                "namespace": namespace,
                "workers": self._plan.workers,
                "simulated": self._plan.simulates,
                "data": str(self._plan.data) if self._plan.data else None,
                "endpoint": str(self._publication.path) if self._publication else None,
            }
            click.echo(json.dumps(facts))
        elif self._plan.embeds:
            click.echo(f"export {ENV_PREFIX}REDIS_URL={shlex.quote(url)}")
            if "namespace" in self._plan.settings.model_fields_set:
                click.echo(f"export {ENV_PREFIX}NAMESPACE={namespace}")

    async def _tell_when_ready(self) -> None:
        """Say that it is ready, once a worker takes jobs."""
        waits = [asyncio.create_task(worker.ready.wait()) for worker in self._workers]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_task(*waits)
        answers = "the simulator" if self._plan.simulates else ", ".join(self._plan.settings.upstreams)
        where = "in another terminal" if self._publication or not self._plan.embeds else "behind the export line"
        self._log.say(f'ready, {answers} answers; try, {where}: tokentape submit --follow "Why is the sky blue?"')

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    # ---- the stop

    def _hear_signals(self) -> None:
        loop = asyncio.get_running_loop()
        self._log.writer.when_gone = lambda: self._when_log_is_gone(loop)
        codes = {signal.SIGINT: exit_codes.INTERRUPTED, signal.SIGTERM: 0, signal.SIGHUP: 0}
        for number, code in codes.items():
            # nohup ignores SIGHUP, and wants it to stay so.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal, code)

    def _when_log_is_gone(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the log's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and so have we
            loop.call_soon_threadsafe(self._ask_to_stop, exit_codes.PIPE_CLOSED)

    def _on_signal(self, code: int) -> None:
        self._signals += 1
        if self._signals == 1:
            grace_s = self._plan.settings.grace_s
            self._log.say(f"stops: streams may finish for {grace_s:g} s; Ctrl-C again puts them back at once")
            self._ask_to_stop(code)
        elif self._signals == 2 and self._may_wait:
            self._log.say("stops at once")
            self._at_once.set()
        else:
            self._flee()

    def _ask_to_stop(self, code: int) -> None:
        if self._exit_code is None:
            self._exit_code = code
        self._stop.set()

    def _flee(self) -> NoReturn:
        """End now. What runs notices that we are gone, and the server is ended as it should be."""
        if self._publication is not None:
            self._publication.remove()
        self._log.close()
        os._exit(self._exit_code or 0)

    async def _until_stopped(self) -> None:
        await self._first_of(self._tasks)

    async def _first_of(self, futures: Iterable[asyncio.Future[Any]], wait_s: float | None = None) -> None:
        """Until one of them is done, or we are to stop. Raises what it raised."""
        stopping = asyncio.create_task(self._stop.wait())
        futures = list(futures)
        try:
            await asyncio.wait([stopping, *futures], timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_task(stopping)
        for future in futures:
            if future.done() and not future.cancelled() and (error := future.exception()) is not None:
                self._at_once.set()  # whoever waits for the error is not to wait for streams
                raise error

    async def _drain(self, tasks: list[asyncio.Task[None]], others: list[asyncio.Task[None]]) -> None:
        """Let the workers leave: in good order, else at once, else as in a crash.

        At once, too, where one of `others` ends: without the server or the simulator, no stream can finish.
        """
        settings = self._plan.settings
        for worker in self._workers:
            worker.stop()
        at_once = asyncio.create_task(self._at_once.wait())
        leaving = asyncio.gather(*tasks, return_exceptions=True)
        wait_s = settings.grace_s + settings.lease_s + _LEAVE_WAIT_S
        either: list[asyncio.Future[Any]] = [leaving, at_once, *others]
        await asyncio.wait(either, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        await end_task(at_once)
        await self._end(self._workers, tasks)

    async def _end(self, keepers: list[Keeper], tasks: list[asyncio.Task[None]]) -> None:
        """End processes: by SIGTERM, or SIGKILL where that takes long."""
        for keeper in keepers:
            keeper.stop()
        _, late = await asyncio.wait(tasks, timeout=_AT_ONCE_WAIT_S)
        if late:
            for keeper in keepers:
                keeper.kill()
            await asyncio.wait(late)
