"""AsyncClient: the methods of Client for asyncio. What they ask and decide is shared (operations, reader)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar, Unpack

import redis.asyncio

from .client import BATCH_BYTES, BATCH_JOBS, DEFAULT_WAIT_S, LOOK_EVERY_S, ClientBase, as_job, batches, seconds
from .completion import ChatCompletion
from .connection import AsyncServer, connect_async, patiently_async
from .errors import ClientClosed, RedisUnavailable, ResultTimeout
from .hub import TaskHub
from .job import DEFAULT_TIMEOUT_S, ChatJob, JobOptions, Priority
from .operations import CLIENT_SCRIPTS, Ask, JobView, Overview, Steps
from .reader import OnRestart, Reader, TextPieces, newest_attempt
from .settings import Settings
from .tape import START, Entry, Position, Tape

T = TypeVar("T")

Requests = Iterable[ChatJob | Mapping[str, Any]] | AsyncIterable[ChatJob | Mapping[str, Any]]


async def _batches_async(requests: Requests, options: JobOptions) -> AsyncIterator[list[ChatJob]]:
    if not isinstance(requests, AsyncIterable):
        for batch in batches(as_job(item, options) for item in requests):
            yield batch
        return
    collected: list[ChatJob] = []
    size = 0
    async for item in requests:
        collected.append(as_job(item, options))
        size += len(collected[-1].body())
        if len(collected) == BATCH_JOBS or size > BATCH_BYTES:
            yield collected
            collected, size = [], 0
    if collected:
        yield collected


class AsyncClient(ClientBase):
    """The asyncio client: the methods of Client, awaited. For one event loop; close it, or use `async with`.

    `AsyncClient()` takes TOKENTAPE_REDIS_URL; `AsyncClient(url)` that server; `AsyncClient(connection=…)` a
    redis.asyncio.Redis of yours, which it does not close. `AsyncClient(settings=…)` reads no environment; it may come
    with a connection, which is used in place of its `redis_url`. Tapes stand on the server that the settings name as
    `tape_url`, in each case.
    `wait_s` of its methods: how long the caller waits, in seconds; float("inf") as long as it takes, for a job has a
    deadline of its own. It never ends the job.
    Raises ConfigError for a wrong setting, TypeError where two arguments name different servers.
    """

    def __init__(
        self, url: str | None = None, *, connection: redis.asyncio.Redis | None = None, settings: Settings | None = None
    ) -> None:
        super().__init__(url, connection, settings)
        self._owned = connection is None
        queue = connection if connection is not None else connect_async(self.settings.redis_url)
        self._queue = AsyncServer(queue, CLIENT_SCRIPTS)
        self._tape = self._queue if self._apart is None else AsyncServer(connect_async(self._apart), CLIENT_SCRIPTS)
        self._hub = TaskHub(self._tape, self.settings.namespace, self.settings.reader_buffer_bytes)

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End followers and connections. Safe to repeat. Whatever asks a server afterwards raises ClientClosed."""
        self._closed = True
        await self._hub.close()
        if self._owned:
            await self._queue.client.aclose()
        if self._tape is not self._queue:
            await self._tape.client.aclose()

    # ---- submit

    async def submit(
        self,
        *,
        model: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        request: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        priority: Priority = "default",
        upstream: str | None = None,
        tenant: str = "",
        metadata: dict[str, str] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        native: bool = False,
        durable: bool = False,
        **params: Any,
    ) -> AsyncJob:
        """Enqueue one chat job. -> a handle, as soon as the job stands on the server; nothing waits for a worker.

        `model`, `messages` and whatever is not named here (`temperature=0`, `tools=[…]`) are the chat.completions
        request; `request` is a whole body in their place. How to run it:

        `idempotency_key`: submitting again with the same key is the same job, and so safe to repeat.
        `priority`: "high", "default" or "low".
        `upstream`: the name of one that the workers have; None, by the model.
        `tenant`: whose job this is; the keys of two tenants never meet.
        `metadata`: texts by name, which `status` gives back; at most 64, and 16 KiB of JSON. It is not sent: the API's
        own `metadata` stands in a `request`, as does whatever else has the name of one of these.
        `timeout_s`: seconds from now until the job expires, the queue included.
        `native`: the request is one of the upstream's own API (Anthropic's Messages, Gemini's generateContent) and is
        sent as it is; the answer comes as chat.completion chunks all the same.
        `durable`: wait until the server's append-only file holds the job.

        Raises InvalidRequest, IdempotencyConflict, RedisUnavailable; nothing is enqueued then, but for an outage in the
        middle, after which the same key heals it. UnknownFormat where another version has a job under this key.
        """
        job = self._job(
            model,
            messages,
            request,
            params,
            idempotency_key=idempotency_key,
            priority=priority,
            upstream=upstream,
            tenant=tenant,
            metadata=metadata,
            timeout_s=timeout_s,
            native=native,
        )
        await self._submit([job], fresh=idempotency_key is None, durable=durable)
        return AsyncJob(self, job.id)

    async def submit_many(self, requests: Requests, **options: Unpack[JobOptions]) -> AsyncGenerator[AsyncJob, None]:
        """Enqueue many jobs, a few hundred in one round trip, and yield their handles as each batch stands.

        `requests` may be an async iterable. Items are request bodies, or ChatJobs where ids matter; `options`
        (priority, upstream, tenant, metadata, timeout_s, native) hold for the bodies. Lazy: nothing is sent before the
        first handle is asked for.
        Raises what `submit` does, at the batch where it is met; what was yielded before is enqueued. ChatJobs may be
        sent again, and are the same jobs; bodies become new ones.
        """
        async for batch in _batches_async(requests, options):
            await self._submit(batch, fresh=False)
            for job in batch:
                yield AsyncJob(self, job.id)

    async def _submit(self, jobs: list[ChatJob], *, fresh: bool, durable: bool = False) -> None:
        if (catalog := self._known(jobs)) is None:
            catalog = await self._drive(self._operations.catalog())
        self._check(jobs, catalog)
        await self._drive(self._operations.submit(jobs, fresh=fresh, durable=durable))

    # ---- read

    def job(self, job_id: str) -> AsyncJob:
        """A handle on a job. Asks no server."""
        return AsyncJob(self, job_id)

    def follow(
        self, job_id: str, after: str | Position = START, wait_s: float = DEFAULT_WAIT_S
    ) -> AsyncGenerator[Entry, None]:
        """The entries after a cursor, as they come; stops after the end.

        `after`: the `id` of the last entry that you have. Safe to repeat: with it, this resumes, and misses nothing.
        Raises BadCursor at the call, which asks no server, and JobNotFound there for what is no job id; with the
        entries JobNotFound at once, CorruptTape, RedisUnavailable, ResultTimeout after `wait_s` seconds, also for a
        cursor beyond the last entry that the tape has not passed by then.
        `async with contextlib.aclosing(client.follow(…))` ends it early.
        """
        return self._follow(Reader(self._operations, job_id, after), seconds(wait_s))

    async def _follow(self, reader: Reader, wait_s: float) -> AsyncGenerator[Entry, None]:
        until = time.monotonic() + wait_s
        patience_s = min(self.settings.redis_wait_s, wait_s)
        while True:
            mark = reader.mark()
            entries = await self._drive(reader.catch_up(), patience_s, reader.doubt)
            patience_s = max(0.0, until - time.monotonic())
            if reader.in_doubt:
                reader.rewind(mark)
                continue
            for entry in entries:
                yield entry
            if reader.ended:
                return
            if not reader.behind:
                if time.monotonic() >= until:
                    raise ResultTimeout(reader.tape.job_id, wait_s, end=reader.missed_end)
                async with contextlib.aclosing(self._listen(reader, until)) as heard:
                    async for entry in heard:
                        yield entry
                if reader.ended:
                    return

    async def _listen(self, reader: Reader, until: float) -> AsyncGenerator[Entry, None]:
        """What the hub hands over, until its feed closes, nothing comes for a while, or the wait is over."""
        feed, event = await self._hub.join(reader.tape, reader.position)
        try:
            while feed.closed is None and not reader.ended:
                left_s = until - time.monotonic()
                if left_s <= 0:
                    return
                try:
                    async with asyncio.timeout(min(left_s, LOOK_EVERY_S)):
                        await event.wait()
                except TimeoutError:
                    return
                event.clear()
                entries = feed.take()
                if entries and feed.unsure:
                    feed.unsure = False
                    if not await self._drive(reader.confirm(), left_s):
                        return
                for entry in reader.accept(entries):
                    yield entry
        finally:
            self._hub.leave(feed)
        if feed.closed == "closed":
            raise ClientClosed(f"{reader.tape.job_id}: the client was closed while it was followed")

    def text(
        self, job_id: str, *, choice: int = 0, on_restart: OnRestart = "raise", wait_s: float = DEFAULT_WAIT_S
    ) -> AsyncGenerator[str, None]:
        """The text of one choice, as it arrives, from the newest attempt on.

        Where an attempt starts over after text was given, Restarted is raised; `on_restart="skip"` goes on with the
        new attempt's text, and a callable is called with the Restarted first. Raises what `follow` and `result` do.
        Safe to repeat: it begins anew. `async with contextlib.aclosing(client.text(…))` ends it early.
        """
        return self._text(self._operations.tape(job_id), TextPieces(job_id, choice, on_restart), seconds(wait_s))

    async def _text(self, at: Tape, pieces: TextPieces, wait_s: float) -> AsyncGenerator[str, None]:
        start = await self._drive(newest_attempt(self._operations, at))
        async with contextlib.aclosing(
            self._follow(Reader(self._operations, at.job_id, start, seen=True), wait_s)
        ) as entries:
            async for entry in entries:
                if text := pieces.of(entry):
                    yield text

    async def result(self, job_id: str, wait_s: float = DEFAULT_WAIT_S) -> ChatCompletion:
        """The assembled completion, waited for.

        Raises JobFailed, JobCancelled, JobExpired, JobNotFound, CorruptTape, ResultTimeout after `wait_s` seconds,
        RedisUnavailable. Safe to repeat.
        """
        last = await self._drive(
            self._operations.last(self._operations.tape(job_id)), min(seconds(wait_s), self.settings.redis_wait_s)
        )
        if last.kind != "end":
            reader = Reader(self._operations, job_id, last.position, seen=True)
            async for entry in self._follow(reader, wait_s):
                last = entry
        return await self._drive(self._operations.completion(job_id, last))

    async def partial(self, job_id: str) -> ChatCompletion:
        """What has arrived of the newest attempt so far; readable also after a cancel or a failure.

        Raises JobNotFound, CorruptTape, RedisUnavailable. Safe to repeat.
        """
        start = await self._drive(newest_attempt(self._operations, self._operations.tape(job_id)))
        return await self._drive(self._operations.partial(job_id, start.attempt))

    async def status(self, job_id: str) -> JobView:
        """The job as its tape shows it now. Raises JobNotFound, CorruptTape, RedisUnavailable. Safe to repeat."""
        return await self._drive(self._operations.view(job_id))

    async def overview(self) -> Overview:
        """Queues and workers now. Raises RedisUnavailable. Safe to repeat."""
        return await self._drive(self._operations.overview())

    async def cancel(self, job_id: str) -> bool:
        """End the job as cancelled. -> False where it had ended already. Safe to repeat.

        Readers see the end at once; the worker stops its call within moments. What had arrived stays readable.
        Raises JobNotFound, UnknownFormat, RedisUnavailable.
        """
        return await self._drive(self._operations.cancel(job_id))

    # ---- driving

    async def _drive(
        self, steps: Steps[T], patience_s: float | None = None, on_trouble: Callable[[], None] | None = None
    ) -> T:
        wait_s = self.settings.redis_wait_s if patience_s is None else patience_s
        try:
            ask = next(steps)
            while True:
                ask = steps.send(await patiently_async(functools.partial(self._send, ask), wait_s, on_trouble))
        except RedisUnavailable as error:
            self._locate(error, ask.server)
            raise
        except StopIteration as done:
            result: T = done.value
            return result

    async def _send(self, ask: Ask) -> list[Any]:
        self._check_open()
        server = self._tape if ask.server == "tape" else self._queue
        if ask.durable:
            return await server.run_durably(ask.commands, self.settings.redis_wait_s)
        return await server.run(ask.commands, atomic=ask.atomic)


class AsyncJob:
    """A handle on one job of an AsyncClient."""

    def __init__(self, client: AsyncClient, job_id: str) -> None:
        self._client = client
        self.id: str = job_id

    def __repr__(self) -> str:
        return f"AsyncJob({self.id})"

    def text(
        self, *, choice: int = 0, on_restart: OnRestart = "raise", wait_s: float = DEFAULT_WAIT_S
    ) -> AsyncGenerator[str, None]:
        """The text of one choice, as it arrives: see AsyncClient.text, also for what it raises."""
        return self._client.text(self.id, choice=choice, on_restart=on_restart, wait_s=wait_s)

    def follow(self, after: str | Position = START, wait_s: float = DEFAULT_WAIT_S) -> AsyncGenerator[Entry, None]:
        """The entries after a cursor, as they come, to the end: see AsyncClient.follow, also for what it raises."""
        return self._client.follow(self.id, after, wait_s)

    async def result(self, wait_s: float = DEFAULT_WAIT_S) -> ChatCompletion:
        """The assembled completion, waited for `wait_s` seconds at most: see AsyncClient.result, also for errors."""
        return await self._client.result(self.id, wait_s)

    async def cancel(self) -> bool:
        """End the job as cancelled. -> False where it had ended already. Safe to repeat. See AsyncClient.cancel."""
        return await self._client.cancel(self.id)

    async def status(self) -> JobView:
        """The job as its tape shows it now. Safe to repeat. See AsyncClient.status."""
        return await self._client.status(self.id)
