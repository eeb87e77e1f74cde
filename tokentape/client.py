"""Client: submit, follow, result, cancel, status, blocking. AsyncClient has the same methods for asyncio.

Both drive the steps of `operations` and `reader`; what they add is connections, waiting and time.

`wait_s` bounds how long a call waits for the job, in seconds from the call on. A server that does not answer is tried
again for `redis_wait_s` of the settings, and by a follower that has read before until its `wait_s` is over, so that an
outage in the middle of a stream is survived.
"""

from __future__ import annotations

import difflib
import functools
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, Self, TypeVar, Unpack

import redis
import redis.asyncio

from .address import address_of, is_at
from .catalog import Catalog
from .completion import ChatCompletion
from .connection import Server, connect, patiently
from .errors import ClientClosed, InvalidRequest, RedisUnavailable, ResultTimeout
from .hub import ThreadHub
from .job import DEFAULT_TIMEOUT_S, ChatJob, JobOptions, Priority
from .masking import shown
from .operations import CLIENT_SCRIPTS, Ask, JobView, Operations, Overview, Steps
from .reader import OnRestart, Reader, TextPieces, newest_attempt
from .settings import Settings
from .tape import START, Entry, Position, Tape

T = TypeVar("T")

DEFAULT_WAIT_S: Final = 600.0
#: A follower to whom nothing comes looks by itself this often: a tape that was deleted sends nothing.
LOOK_EVERY_S: Final = 5.0
#: How long a client goes by the upstreams that it has read of.
CATALOG_S: Final = 10.0
#: Jobs, and bytes of requests, that submit_many sends at once.
BATCH_JOBS: Final = 250
BATCH_BYTES: Final = 4 * 1024 * 1024


class ClientBase:
    """What both clients share: settings, and building jobs from arguments."""

    def __init__(
        self, url: str | None, connection: redis.Redis | redis.asyncio.Redis | None, settings: Settings | None
    ) -> None:
        """Raises TypeError where two of them name different servers."""
        if url is not None and connection is not None:
            raise TypeError("url and connection exclude each other: both are the server of the queue")
        if url is not None and settings is not None and url != settings.redis_url:
            raise TypeError(
                f"url and settings name two servers, {shown(url)} and {shown(settings.redis_url)}: give one of them"
            )
        self.settings: Settings = settings if settings is not None else Settings.load(redis_url=url)
        tape_url = self.settings.tape_url
        if connection is None:
            apart = tape_url not in (None, self.settings.redis_url)
        else:
            apart = tape_url is not None and not is_at(connection, tape_url)
        #: The server of the tapes, where it is not that of the queue.
        self._apart: str | None = tape_url if apart else None
        self._operations = Operations(self.settings, one_server=not apart)
        self._address = shown(self.settings.redis_url) if connection is None else address_of(connection)
        self._catalog: Catalog | None = None
        self._catalog_until = 0.0
        self._closed = False

    def _check_open(self) -> None:
        """For each call to a server: a pool that was closed would open connections again, and nobody close them."""
        if self._closed:
            raise ClientClosed("the client is closed")

    def _locate(self, error: RedisUnavailable, server: Literal["tape", "queue"]) -> None:
        """Add which server it was to what is raised."""
        error.url = shown(self._apart) if server == "tape" and self._apart else self._address
        if error.url:
            error.add_note(f"asked {error.url}")

    @staticmethod
    def _job(
        model: str | None,
        messages: Sequence[Mapping[str, Any]] | None,
        request: Mapping[str, Any] | None,
        params: dict[str, Any],
        **options: Any,
    ) -> ChatJob:
        if request is not None:
            if model is not None or messages is not None or params:
                raise InvalidRequest("is a whole body: give model, messages and parameters inside it", field="request")
            return ChatJob.create(request, **options)
        for name in params:
            if (meant := _meant(name)) is not None:
                raise InvalidRequest(f"{meant}; a parameter of the API by that name goes into request=", field=name)
        body: dict[str, Any] = dict(params)
        if model is not None:
            body["model"] = model
        if messages is not None:
            body["messages"] = _plain(messages)
        return ChatJob.create(body, **options)

    def _known(self, jobs: Iterable[ChatJob]) -> Catalog | None:
        """The catalog, while it is young enough and knows what these jobs name."""
        fresh = self._catalog is not None and time.monotonic() < self._catalog_until
        return self._catalog if fresh and self._catalog and all(map(self._catalog.knows, jobs)) else None

    def _check(self, jobs: Iterable[ChatJob], catalog: Catalog) -> None:
        self._catalog, self._catalog_until = catalog, time.monotonic() + CATALOG_S
        for job in jobs:
            catalog.check(job)


#: What a misspelt option would be sent as. Those of its own call say where they belong.
_OPTIONS: Final = ("idempotency_key", "priority", "upstream", "tenant", "metadata", "timeout_s", "native", "durable")
_ALSO_MEANT: Final = {
    "id": "the id of a job is that of a ChatJob, for submit_many",
    "job_id": "the id of a job is that of a ChatJob, for submit_many",
    "key": "did you mean idempotency_key?",
    "meta": "did you mean metadata?",
    "prio": "did you mean priority?",
    "wait_s": "submit does not wait; timeout_s is the job's own time, and result() takes wait_s",
}


@functools.lru_cache(maxsize=1024)
def _meant(name: str) -> str | None:
    """What a parameter is taken for that is near an option of submit; None for a parameter of the API."""
    if name == "stream":  # is near `upstream`
        return None
    near = difflib.get_close_matches(name, _OPTIONS, n=1, cutoff=0.8)
    return _ALSO_MEANT.get(name) or (f"did you mean {near[0]}?" if near else None)


def seconds(wait_s: float) -> float:
    """A time to wait, checked where it comes in."""
    if isinstance(wait_s, bool) or not isinstance(wait_s, int | float) or math.isnan(wait_s):
        raise TypeError(f'wait_s must be a number of seconds, not {wait_s!r}; float("inf") waits as long as it takes')
    return wait_s


def batches(jobs: Iterable[ChatJob]) -> Iterator[list[ChatJob]]:
    batch: list[ChatJob] = []
    size = 0
    for job in jobs:
        batch.append(job)
        size += len(job.body())
        if len(batch) == BATCH_JOBS or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _plain(messages: object) -> object:
    """Messages as JSON has them, whatever kind of sequence and of mapping they come in; anything else as it is."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        return messages
    return [dict(message) if isinstance(message, Mapping) else message for message in messages]


def as_job(item: ChatJob | Mapping[str, Any], options: JobOptions) -> ChatJob:
    return item if isinstance(item, ChatJob) else ChatJob.create(item, **options)


class Client(ClientBase):
    """A blocking client. Thread-safe; close it, or use it as a context manager.

    `Client()` takes TOKENTAPE_REDIS_URL; `Client(url)` that server; `Client(connection=…)` a redis.Redis of yours,
    which it does not close. `Client(settings=…)` reads no environment; it may come with a connection, which is used in
    place of its `redis_url`. Tapes stand on the server that the settings name as `tape_url`, in each case.
    `wait_s` of its methods: how long the caller waits, in seconds; float("inf") as long as it takes, for a job has a
    deadline of its own. It never ends the job.
    Raises ConfigError for a wrong setting, TypeError where two arguments name different servers.
    """

    def __init__(
        self, url: str | None = None, *, connection: redis.Redis | None = None, settings: Settings | None = None
    ) -> None:
        super().__init__(url, connection, settings)
        self._owned = connection is None
        queue = connection if connection is not None else connect(self.settings.redis_url)
        self._queue = Server(queue, CLIENT_SCRIPTS)
        self._tape = self._queue if self._apart is None else Server(connect(self._apart), CLIENT_SCRIPTS)
        self._hub = self._new_hub()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End followers and connections. Safe to repeat. Whatever asks a server afterwards raises ClientClosed."""
        self._closed = True
        self._hub.close()
        if self._owned:
            self._queue.client.close()
        if self._tape is not self._queue:
            self._tape.client.close()

    # ---- submit

    def submit(
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
    ) -> Job:
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
        self._submit([job], fresh=idempotency_key is None, durable=durable)
        return Job(self, job.id)

    def submit_many(
        self, requests: Iterable[ChatJob | Mapping[str, Any]], **options: Unpack[JobOptions]
    ) -> Generator[Job, None, None]:
        """Enqueue many jobs, a few hundred in one round trip, and yield their handles as each batch stands.

        Items are request bodies, or ChatJobs where ids matter; `options` (priority, upstream, tenant, metadata,
        timeout_s, native) hold for the bodies. Lazy: nothing is sent before the first handle is asked for.
        Raises what `submit` does, at the batch where it is met; what was yielded before is enqueued. ChatJobs may be
        sent again, and are the same jobs; bodies become new ones.
        """
        for batch in batches(as_job(item, options) for item in requests):
            self._submit(batch, fresh=False)
            yield from (Job(self, job.id) for job in batch)

    def _submit(self, jobs: list[ChatJob], *, fresh: bool, durable: bool = False) -> None:
        if (catalog := self._known(jobs)) is None:
            catalog = self._drive(self._operations.catalog())
        self._check(jobs, catalog)
        self._drive(self._operations.submit(jobs, fresh=fresh, durable=durable))

    # ---- read

    def job(self, job_id: str) -> Job:
        """A handle on a job. Asks no server."""
        return Job(self, job_id)

    def follow(
        self, job_id: str, after: str | Position = START, wait_s: float = DEFAULT_WAIT_S
    ) -> Generator[Entry, None, None]:
        """The entries after a cursor, as they come; stops after the end.

        `after`: the `id` of the last entry that you have. Safe to repeat: with it, this resumes, and misses nothing.
        Raises BadCursor at the call, which asks no server, and JobNotFound there for what is no job id; with the
        entries JobNotFound at once, CorruptTape, RedisUnavailable, ResultTimeout after `wait_s` seconds, also for a
        cursor beyond the last entry that the tape has not passed by then.
        Closing the generator ends it early.
        """
        return self._follow(Reader(self._operations, job_id, after), seconds(wait_s))

    def _follow(self, reader: Reader, wait_s: float) -> Generator[Entry, None, None]:
        until = time.monotonic() + wait_s
        patience_s = min(self.settings.redis_wait_s, wait_s)
        while True:
            mark = reader.mark()
            entries = self._drive(reader.catch_up(), patience_s, reader.doubt)
            patience_s = max(0.0, until - time.monotonic())
            if reader.in_doubt:
                reader.rewind(mark)
                continue
            yield from entries
            if reader.ended:
                return
            if not reader.behind:
                if time.monotonic() >= until:
                    raise ResultTimeout(reader.tape.job_id, wait_s, end=reader.missed_end)
                yield from self._listen(reader, until)
                if reader.ended:
                    return

    def _listen(self, reader: Reader, until: float) -> Generator[Entry, None, None]:
        """What the hub hands over, until its feed closes, nothing comes for a while, or the wait is over."""
        hub = self._current_hub()
        feed, event = hub.join(reader.tape, reader.position)
        try:
            while feed.closed is None and not reader.ended:
                left_s = until - time.monotonic()
                if left_s <= 0:
                    return
                if not event.wait(min(left_s, LOOK_EVERY_S)):
                    return
                event.clear()
                entries = feed.take()
                if entries and feed.unsure:
                    feed.unsure = False
                    if not self._drive(reader.confirm(), left_s):
                        return
                yield from reader.accept(entries)
        finally:
            hub.leave(feed)
        if feed.closed == "closed":
            raise ClientClosed(f"{reader.tape.job_id}: the client was closed while it was followed")

    def text(
        self, job_id: str, *, choice: int = 0, on_restart: OnRestart = "raise", wait_s: float = DEFAULT_WAIT_S
    ) -> Generator[str, None, None]:
        """The text of one choice, as it arrives, from the newest attempt on.

        Where an attempt starts over after text was given, Restarted is raised; `on_restart="skip"` goes on with the
        new attempt's text, and a callable is called with the Restarted first. Raises what `follow` and `result` do.
        Safe to repeat: it begins anew. Closing the generator ends it early.
        """
        return self._text(self._operations.tape(job_id), TextPieces(job_id, choice, on_restart), seconds(wait_s))

    def _text(self, at: Tape, pieces: TextPieces, wait_s: float) -> Generator[str, None, None]:
        start = self._drive(newest_attempt(self._operations, at))
        for entry in self._follow(Reader(self._operations, at.job_id, start, seen=True), wait_s):
            if text := pieces.of(entry):
                yield text

    def result(self, job_id: str, wait_s: float = DEFAULT_WAIT_S) -> ChatCompletion:
        """The assembled completion, waited for.

        Raises JobFailed, JobCancelled, JobExpired, JobNotFound, CorruptTape, ResultTimeout after `wait_s` seconds,
        RedisUnavailable. Safe to repeat.
        """
        last = self._drive(
            self._operations.last(self._operations.tape(job_id)), min(seconds(wait_s), self.settings.redis_wait_s)
        )
        if last.kind != "end":
            reader = Reader(self._operations, job_id, last.position, seen=True)
            for entry in self._follow(reader, wait_s):
                last = entry
        return self._drive(self._operations.completion(job_id, last))

    def partial(self, job_id: str) -> ChatCompletion:
        """What has arrived of the newest attempt so far; readable also after a cancel or a failure.

        Raises JobNotFound, CorruptTape, RedisUnavailable. Safe to repeat.
        """
        start = self._drive(newest_attempt(self._operations, self._operations.tape(job_id)))
        return self._drive(self._operations.partial(job_id, start.attempt))

    def status(self, job_id: str) -> JobView:
        """The job as its tape shows it now. Raises JobNotFound, CorruptTape, RedisUnavailable. Safe to repeat."""
        return self._drive(self._operations.view(job_id))

    def overview(self) -> Overview:
        """Queues and workers now. Raises RedisUnavailable. Safe to repeat."""
        return self._drive(self._operations.overview())

    def cancel(self, job_id: str) -> bool:
        """End the job as cancelled. -> False where it had ended already. Safe to repeat.

        Readers see the end at once; the worker stops its call within moments. What had arrived stays readable.
        Raises JobNotFound, UnknownFormat, RedisUnavailable.
        """
        return self._drive(self._operations.cancel(job_id))

    # ---- driving

    def _drive(
        self, steps: Steps[T], patience_s: float | None = None, on_trouble: Callable[[], None] | None = None
    ) -> T:
        wait_s = self.settings.redis_wait_s if patience_s is None else patience_s
        try:
            ask = next(steps)
            while True:
                ask = steps.send(patiently(functools.partial(self._send, ask), wait_s, on_trouble))
        except RedisUnavailable as error:
            self._locate(error, ask.server)
            raise
        except StopIteration as done:
            result: T = done.value
            return result

    def _send(self, ask: Ask) -> list[Any]:
        self._check_open()
        server = self._tape if ask.server == "tape" else self._queue
        if ask.durable:
            return server.run_durably(ask.commands, self.settings.redis_wait_s)
        return server.run(ask.commands, atomic=ask.atomic)

    def _new_hub(self) -> ThreadHub:
        return ThreadHub(self._tape, self.settings.namespace, self.settings.reader_buffer_bytes)

    def _current_hub(self) -> ThreadHub:
        if self._hub.forked:
            self._hub = self._new_hub()
        return self._hub


class Job:
    """A handle on one job of a Client."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self.id: str = job_id

    def __repr__(self) -> str:
        return f"Job({self.id})"

    def text(
        self, *, choice: int = 0, on_restart: OnRestart = "raise", wait_s: float = DEFAULT_WAIT_S
    ) -> Generator[str, None, None]:
        """The text of one choice, as it arrives: see Client.text, also for what it raises."""
        return self._client.text(self.id, choice=choice, on_restart=on_restart, wait_s=wait_s)

    def follow(self, after: str | Position = START, wait_s: float = DEFAULT_WAIT_S) -> Generator[Entry, None, None]:
        """The entries after a cursor, as they come, to the end: see Client.follow, also for what it raises."""
        return self._client.follow(self.id, after, wait_s)

    def result(self, wait_s: float = DEFAULT_WAIT_S) -> ChatCompletion:
        """The assembled completion, waited for `wait_s` seconds at most: see Client.result, also for errors."""
        return self._client.result(self.id, wait_s)

    def cancel(self) -> bool:
        """End the job as cancelled. -> False where it had ended already. Safe to repeat. See Client.cancel."""
        return self._client.cancel(self.id)

    def status(self) -> JobView:
        """The job as its tape shows it now. Safe to repeat. See Client.status."""
        return self._client.status(self.id)
