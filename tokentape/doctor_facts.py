"""What `tokentape doctor` looks at: facts, gathered once. What they mean is judged in `doctor.py`, from these alone.

Nothing here changes anything, waits for an outage to pass, or costs money: one connection and a few reads for each
server, and for each upstream at most two GETs of its list of models. Upstreams are asked by the worker's package, which
has the keys, the addresses and the way out as its calls have them; the library finds it through the entry points
`tokentape.probes`, and without that package says that it did not look.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Final, Literal, Self

import redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeout

from .connection import connect
from .errors import ConfigError
from .masking import shown
from .operations import pairs
from .queue import UPSTREAMS_FIELD, VERSION_FIELD, QueueKeys, rq_worker_key
from .settings import Loaded, Upstream, load
from .tape import Tape, text_of

Trouble = Literal[
    "refused", "forbidden", "unresolved", "timeout", "password", "tls", "closed", "no_redis", "loading", "full", "other"
]
#: "missing": one is asked for and there is none. "none": none is asked for. "unchecked": `key_note` says why.
Key = Literal["accepted", "refused", "missing", "none", "unchecked"]
#: What keeps an answer from saying whether calls would succeed. "path": there is no list of models where one is looked
#: for, as with a base_url without its /v1. "list": the key may not see it. "busy": asked too often.
Doubt = Literal["path", "list", "busy"]
#: The `code` of an upstream that cannot even be asked, by its settings; a worker that has it does not start.
UNUSABLE: Final = "unusable"

#: Of the jobs that are open and of those that ended, so many of the newest are looked at for their format.
_TAPES_LOOKED_AT: Final = 20
#: What makes a failed snapshot an outage.
_CONFIG: Final = ("save", "stop-writes-on-bgsave-error")


@dataclass(frozen=True)
class ServerFacts:
    """One Redis server. `trouble` says why it could not be asked; then the rest is unknown."""

    setting: str
    #: Where the address was read, and the address without its password.
    source: str
    url: str
    trouble: Trouble | None = None
    detail: str = ""
    #: INFO, or None where this user may not run it.
    info: Mapping[str, Any] | None = None
    #: CONFIG GET of what a failed snapshot depends on, likewise; asked only after one: a refusal stands in the ACL LOG.
    config: Mapping[str, str] | None = None
    round_trip_ms: float = 0.0
    #: Its clock minus ours, in seconds, to within half the round trip.
    clock_ahead_s: float = 0.0


@dataclass(frozen=True)
class WorkerFacts:
    """One lease. `upstreams` and `version` are None where the worker has not said, as an older one."""

    name: str
    lease_s: float
    jobs: int
    upstreams: tuple[str, ...] | None = None
    version: str | None = None


@dataclass(frozen=True)
class UpstreamFacts:
    """What an upstream of these settings answered, here and now.

    `problem`: why it was not reached, or what it answered instead; without secrets. `status`: of its answer, None where
    there was none.
    """

    name: str
    address: str
    key: Key
    status: int | None = None
    problem: str | None = None
    code: str | None = None
    #: Why the key is as it is, where that says more.
    key_note: str | None = None
    doubt: Doubt | None = None
    #: Models that the settings name and the upstream does not list.
    unlisted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Everything at one moment. What is None was not asked, because something before it is not there."""

    problems: tuple[str, ...] = ()
    file: str | None = None
    #: Upstreams that a file or OPENAI_BASE_URL names.
    configured: tuple[str, ...] = ()
    servers: tuple[ServerFacts, ...] = ()
    workers: tuple[WorkerFacts, ...] | None = None
    #: Jobs that stand in a queue.
    queued: int = 0
    upstreams: tuple[UpstreamFacts, ...] | None = None
    #: Why the upstreams were not asked.
    unasked: str | None = None
    #: Format → how many of the tapes that were looked at; None is one that could not be read.
    formats: Mapping[int | None, int] | None = None
    namespace: str = field(default="tokentape")


Probe = Callable[[Mapping[str, Upstream]], Sequence[UpstreamFacts]]


def gather(environ: Mapping[str, str] | None = None) -> Facts:
    """Look at everything. Raises nothing for what it finds. Safe to repeat."""
    try:
        loaded = load(environ)
    except ConfigError as error:
        return Facts(problems=error.problems)
    settings = loaded.settings
    servers: dict[str, ServerFacts] = {}
    workers, queued, formats = None, 0, None
    with _Connections(loaded) as connections:
        apart = settings.tape_url not in (None, settings.redis_url)
        servers |= {name: connections.look(name) for name in (("redis_url", "tape_url") if apart else ("redis_url",))}
        queue, tapes = connections.reached("redis_url"), connections.reached("tape_url")
        if queue is not None:
            setting = "redis_url"
            try:
                with suppress(NoPermissionError):  # the others' records are the operator's to see
                    workers, queued = _workers(queue, QueueKeys(settings.namespace))
                setting = "tape_url" if apart else setting
                with suppress(NoPermissionError):
                    formats = None if tapes is None else _formats(queue, tapes, settings.namespace)
            except (RedisError, OSError) as error:  # it went away since it was looked at
                servers[setting] = connections.failed(setting, error)
    configured = settings.upstreams if _on_purpose(loaded) else {}
    upstreams, unasked = _ask_upstreams(configured or _presumed(loaded, workers or ()))
    return Facts(
        file=loaded.file,
        configured=tuple(configured),
        servers=tuple(servers.values()),
        workers=workers,
        queued=queued,
        upstreams=upstreams,
        unasked=unasked,
        formats=formats,
        namespace=settings.namespace,
    )


class _Connections:
    """One client for each server, closed at the end."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._clients: dict[str, redis.Redis] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for client in self._clients.values():
            client.close()

    def look(self, setting: str) -> ServerFacts:
        """Ask a server about itself."""
        try:
            client = connect(self._url(setting))
        except ConfigError as error:
            return self._facts(setting, trouble="other", detail=str(error))
        try:
            _ping(client)  # the connection, and what it takes to make one, are not to count
            began, began_at = time.perf_counter(), time.time()
            seconds, micros = client.time()
            took_s = time.perf_counter() - began
            info = _allowed(client.info)
            failed = info is not None and info.get("rdb_last_bgsave_status", "ok") != "ok"
            config = _allowed(lambda: client.config_get(*_CONFIG)) if failed else None
        except (RedisError, OSError, ValueError) as error:
            client.close()
            return self.failed(setting, error)
        self._clients[setting] = client
        return self._facts(
            setting,
            info=info,
            config=config,
            round_trip_ms=took_s * 1000,
            clock_ahead_s=int(seconds) + int(micros) / 1e6 - (began_at + took_s / 2),
        )

    def failed(self, setting: str, error: Exception) -> ServerFacts:
        """A server that could not be asked, or not to the end."""
        trouble = trouble_of(error)
        return self._facts(setting, trouble=trouble, detail=" ".join(str(error).split()))

    def reached(self, setting: str) -> redis.Redis | None:
        """The client of a server that answered."""
        same = self._loaded.settings.tape_url in (None, self._loaded.settings.redis_url)
        return self._clients.get("redis_url" if same else setting)

    def _url(self, setting: str) -> str:
        return str(getattr(self._loaded.settings, setting))

    def _facts(self, setting: str, **known: Any) -> ServerFacts:
        return ServerFacts(setting, str(self._loaded.source(setting)), shown(self._url(setting)), **known)


def _ping(client: redis.Redis) -> None:
    """Raises what keeps the server from answering. One whose disk is full refuses PING too, and tells more by INFO."""
    try:
        client.ping()
    except ResponseError as error:
        if not str(error).startswith("MISCONF"):
            raise


def trouble_of(error: BaseException) -> Trouble:
    """Which kind of trouble kept a client from its server, by the error and what it came from."""
    if isinstance(error, AuthenticationError) or str(error).startswith(("NOAUTH", "WRONGPASS")):
        return "password"
    if "max number of clients" in str(error):
        return "full"
    if isinstance(error, BusyLoadingError):
        return "loading"
    chain = list(_causes(error))
    kinds: tuple[tuple[tuple[type[BaseException], ...], Trouble], ...] = (
        ((InvalidResponse,), "no_redis"),
        ((socket.gaierror,), "unresolved"),
        ((ssl.SSLError,), "tls"),
        ((PermissionError,), "forbidden"),
        ((ConnectionRefusedError, FileNotFoundError), "refused"),
        ((TimeoutError, RedisTimeout), "timeout"),
        ((ConnectionResetError, BrokenPipeError), "closed"),
    )
    for types, trouble in kinds:
        if any(isinstance(one, types) for one in chain):
            return trouble
    return "closed" if "closed by server" in str(error) else "other"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _allowed(ask: Callable[[], Any]) -> Any:
    """What was asked for, or None where this user may not, or this server does not know the command."""
    try:
        return ask()
    except (NoPermissionError, ResponseError):
        return None


def _workers(client: redis.Redis, keys: QueueKeys) -> tuple[tuple[WorkerFacts, ...], int]:
    """The leases, and how many jobs stand in a queue."""
    pipe = client.pipeline(transaction=False)
    pipe.time()
    pipe.execute_command("ZRANGE", keys.leases, 0, -1, "WITHSCORES")
    for queue in (*keys.queues, *keys.all_suspects):
        pipe.llen(queue)
    (seconds, micros), leases, *lengths = pipe.execute()
    now_s = int(seconds) + int(micros) / 1e6
    found = []
    for name, until in ((text_of(row[0]), float(row[1])) for row in pairs(leases)):
        version, upstreams = _said(client, name)
        found.append(
            WorkerFacts(
                name,
                lease_s=round(until / 1000 - now_s, 3),
                jobs=int(client.llen(keys.worker_jobs(name))),
                upstreams=_names(upstreams),
                version=None if version is None else text_of(version),
            )
        )
    return tuple(found), sum(lengths)


def _said(client: redis.Redis, worker: str) -> tuple[Any, Any]:
    """Its version and upstreams, as it says; nothing where RQ's records are not this user's to see, as a client's."""
    try:
        version, upstreams = client.hmget(rq_worker_key(worker), [VERSION_FIELD, UPSTREAMS_FIELD])
    except NoPermissionError:
        return None, None
    return version, upstreams


def _names(value: Any) -> tuple[str, ...] | None:
    try:
        names = json.loads(value) if value is not None else None
    except ValueError:
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _formats(queue: redis.Redis, tapes: redis.Redis, namespace: str) -> dict[int | None, int]:
    """The formats of the newest tapes."""
    keys = QueueKeys(namespace)
    newest = [("ZREVRANGE", key, 0, _TAPES_LOOKED_AT - 1) for key in (keys.open, keys.ended)]
    ids = {text_of(job_id) for command in newest for job_id in queue.execute_command(*command)}
    counts: dict[int | None, int] = {}
    for job_id in sorted(ids):
        rows = tapes.execute_command(*Tape(namespace, job_id).first())
        if rows:  # else its retention is over
            format_ = _format(rows[0])
            counts[format_] = counts.get(format_, 0) + 1
    return counts


def _format(row: Any) -> int | None:
    """Not read as the tape's own rules read it: this is to tell of a format that they refuse."""
    try:
        fields = row[1]
        data = (
            dict(zip(fields[::2], fields[1::2], strict=True))[b"data"] if isinstance(fields, list) else fields[b"data"]
        )
        format_ = json.loads(data)["format"]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return format_ if isinstance(format_, int) else None


def _ask_upstreams(asked: Mapping[str, Upstream]) -> tuple[tuple[UpstreamFacts, ...] | None, str | None]:
    if not asked:
        return None, "none is configured in this environment"
    points = list(entry_points(group="tokentape.probes"))
    if not points:
        return None, "no part that could ask them is installed"
    try:
        probes: list[Probe] = [point.load() for point in points]
        return tuple(facts for probe in probes for facts in probe(asked)), None
    except ImportError:
        return None, "asking them needs the worker's packages: pip install 'tokentape[worker]'"


def _on_purpose(loaded: Loaded) -> bool:
    """Whether somebody has configured upstreams here. A key alone is in many a shell for something else."""
    return "upstreams" in loaded.sources or "upstreams.default.base_url" in loaded.sources


def _presumed(loaded: Loaded, workers: Sequence[WorkerFacts]) -> Mapping[str, Upstream]:
    """The upstream that a worker started here would have, by a key alone, unless the live ones have others."""
    key = any(name.startswith("upstreams.default.api_key") for name in loaded.sources)
    live = [worker.upstreams for worker in workers if worker.lease_s > 0]
    others = bool(live) and all(names is not None and "default" not in names for names in live)
    return loaded.settings.upstreams if key and not others else {}
