"""`tokentape doctor`: what is wrong, why that matters, and how to mend it. It judges; `doctor_facts.py` looks.

A finding is an error where jobs fail, wait without end or can be lost; a warning where they would under load, after a
crash or for some of the jobs. What could not be looked at is said as such, never passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import click

from . import __version__
from .doctor_facts import UNUSABLE, Doubt, Facts, ServerFacts, Trouble, UpstreamFacts, WorkerFacts, gather
from .printable import printable
from .tape import FORMAT

State = Literal["ok", "warning", "error", "skipped"]

#: The oldest Redis that the tests run on; the first Valkey grew out of a later one.
_OLDEST: Final = {"redis": (7, 0), "valkey": (7, 2)}
_CLOCK_S: Final = 5.0
_ROUND_TRIP_MS: Final = 100.0
_NEARLY_FULL: Final = 0.8
_FULL: Final = 0.95
_NEARLY_ALL_CLIENTS: Final = 0.8


@dataclass(frozen=True)
class Finding:
    """One line. `mend` says what to do, where there is something."""

    check: str
    state: State
    message: str
    mend: str | None = None


@click.command()
@click.option("--json", "as_json", is_flag=True, help='One object, {"ok": …, "findings": […]}.')
@click.pass_context
def doctor(ctx: click.Context, *, as_json: bool) -> None:
    """Check settings, Redis, upstreams and workers, and say how to mend what is wrong.

    Changes nothing. Upstreams are asked for their lists of models, which costs nothing; without the worker extra, or
    where this environment has not the worker's settings, ask a worker's environment. Ends with 1 where there is an
    error; warnings alone end with 0.

    \b
    Examples:
      tokentape doctor
      tokentape doctor --json | jq '.findings[] | select(.state != "ok")'
    """
    findings = list(judge(gather()))
    wrong = any(finding.state == "error" for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": not wrong, "findings": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            click.echo(_line(finding, max(len(one.check) for one in findings)))
        click.echo(_summary(findings))
    ctx.exit(1 if wrong else 0)


_STATES: Final[Mapping[State, tuple[str, str | None]]] = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "error": ("ERROR", "red"),
    "skipped": ("skipped", None),
}


def _line(finding: Finding, width: int) -> str:
    word, colour = _STATES[finding.state]
    # Names, addresses and the words of an error are the file's, the server's and the upstream's.
    line = f"{click.style(f'{word:<7}', fg=colour)}  {printable(finding.check):<{width}}  {printable(finding.message)}"
    return f"{line}\n{'':<{width + 11}}→ {printable(finding.mend)}" if finding.mend else line


def _summary(findings: list[Finding]) -> str:
    counts = [(sum(one.state == state for one in findings), state) for state in ("error", "warning", "skipped")]
    said = [f"{count} {state}{'s' if count > 1 and state != 'skipped' else ''}" for count, state in counts if count]
    return ", ".join(said) or "all is well"


def judge(facts: Facts) -> Iterator[Finding]:
    """What the facts mean, in the order in which they depend on each other."""
    if facts.problems:
        for problem in facts.problems:
            yield Finding("settings", "error", problem)
        yield Finding("everything else", "skipped", "needs settings that can be used")
        return
    yield Finding("settings", "ok", f"from {facts.file} and the environment" if facts.file else "from the environment")
    for server in facts.servers:
        yield from _judge_server(server)
    yield from _judge_formats(facts)
    yield from _judge_workers(facts)
    yield from _judge_upstreams(facts)


_TROUBLES: Final[Mapping[Trouble, tuple[str, str]]] = {
    "refused": ("nothing listens there", "start the server, or correct the address; `tokentape up` starts one here"),
    "forbidden": (
        "this user may not connect there",
        "let it write to the socket: unixsocketperm of the server, or its group; else look for a rule of this machine",
    ),
    "unresolved": ("its host name is unknown", "correct the host, or the name service of this machine"),
    "timeout": ("it did not answer in time", "look for a firewall between here and there, or a server that hangs"),
    "password": ("it wants another user or password", "put them into the address: redis://USER:PASSWORD@HOST:PORT/0"),
    "tls": ("TLS fails", "redis:// is without TLS, rediss:// with; give the server's authority as ?ssl_ca_certs=FILE"),
    "closed": ("it closes the connection", "a server that wants TLS does so: try rediss://; else read its log"),
    "no_redis": ("what listens there is no Redis", "correct the port"),
    "loading": ("it is still loading its data", "wait until it has; workers and clients do so by themselves"),
    "full": ("it has as many clients as it takes", "raise its maxclients, or end some clients"),
    "other": ("it cannot be used", "the server's words say why"),
}


def _judge_server(server: ServerFacts) -> Iterator[Finding]:
    check = server.setting
    if server.trouble is not None:
        message, mend = _TROUBLES[server.trouble]
        said = f" ({server.detail})" if server.detail else ""
        yield Finding(check, "error", f"{server.url}, from {server.source}: {message}{said}", mend)
        return
    said = f"{server.url} answers in {server.round_trip_ms:.1f} ms, from {server.source}"
    if server.round_trip_ms > _ROUND_TRIP_MS:
        mend = "run workers and producers near the server: each batch of chunks is a round trip"
        yield Finding(check, "warning", said, mend)
    else:
        yield Finding(check, "ok", said)
    yield _clock(server)
    if server.info is None:
        mend = "let this user run INFO (ACL: +info), or ask the server's operator"
        yield Finding(f"{check} server", "skipped", "this user may not ask about version, persistence and memory", mend)
        return
    yield _version(check, server.info)
    yield _persistence(server, server.info)
    yield _memory(check, server.info)
    yield from _role(check, server.info)


def _clock(server: ServerFacts) -> Finding:
    ahead = server.clock_ahead_s
    check = f"{server.setting} clock"
    if abs(ahead) <= _CLOCK_S:
        return Finding(check, "ok", "agrees with this machine's")
    which = "ahead of" if ahead > 0 else "behind"
    mend = "set both clocks by NTP; leases go by the server's alone, but times in logs and results do not agree"
    return Finding(check, "warning", f"{abs(ahead):.0f} s {which} this machine's", mend)


def _version(check: str, info: Mapping[str, Any]) -> Finding:
    valkey = bool(info.get("valkey_version"))
    name = "valkey" if valkey else "redis"
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    said = f"{name.capitalize()} {version}"
    oldest = ".".join(map(str, _OLDEST[name]))
    if numbers < _OLDEST[name]:
        return Finding(f"{check} version", "error", f"{said} is too old", f"take {name.capitalize()} {oldest} or newer")
    return Finding(f"{check} version", "ok", said)


def _persistence(server: ServerFacts, info: Mapping[str, Any]) -> Finding:
    check = f"{server.setting} persistence"
    if info.get("aof_enabled") and info.get("aof_last_write_status", "ok") != "ok":
        return Finding(check, "error", f"the append-only file cannot be written{_REFUSES}", _DISK)
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        return _failed_snapshot(check, server.config)
    if info.get("aof_enabled"):
        return Finding(check, "ok", "append-only file")
    mend = "appendonly yes, appendfsync everysec: else a crash of the server loses what came since its last snapshot"
    return Finding(check, "warning", "no append-only file", mend)


_REFUSES: Final = ", so the server refuses writes"
_DISK: Final = "look at the server's disk and its log"


def _failed_snapshot(check: str, config: Mapping[str, str] | None) -> Finding:
    """A server refuses writes then where it has points to save at and is told to stop; an append-only file or not."""
    said = "the last snapshot could not be written"
    if config is None:
        said = (
            f"{said}; whether the server refuses writes for it, only CONFIG GET could tell, which this user may not run"
        )
    elif config.get("save") and config.get("stop-writes-on-bgsave-error") == "yes":
        return Finding(check, "error", said + _REFUSES, _DISK)
    return Finding(check, "warning", said, _DISK)


def _memory(check: str, info: Mapping[str, Any]) -> Finding:
    check = f"{check} memory"
    limit = int(info.get("maxmemory", 0))
    # What replicas and the append-only file have still to take does not count against the limit.
    used = int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0))
    policy = str(info.get("maxmemory_policy", "noeviction"))
    mega = 1024 * 1024
    if policy != "noeviction":
        mend = "maxmemory-policy noeviction: when memory is full, this one deletes tapes or queues without a word"
        return Finding(check, "error" if limit else "warning", f"maxmemory-policy is {policy}", mend)
    if not limit:
        total = int(info.get("total_system_memory", 0))
        of_all = f"; the machine has {total / mega:.0f} MB" if total else ""
        mend = "set maxmemory below what the machine has, so that writes are refused before the kernel ends the server"
        return Finding(check, "warning", f"{used / mega:.0f} MB used, without a limit{of_all}", mend)
    said = f"{used / mega:.0f} of {limit / mega:.0f} MB used"
    if used > limit * _NEARLY_FULL:
        state: State = "error" if used > limit * _FULL else "warning"
        mend = "shorten TOKENTAPE_RETENTION_S, raise maxmemory, or submit less: when it is full, submitting is refused"
        return Finding(check, state, said, mend)
    return Finding(check, "ok", f"{said}, {policy}")


def _role(check: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    if info.get("role", "master") != "master":
        mend = "point the setting to the primary: a replica takes no writes"
        yield Finding(f"{check} role", "error", "the server is a replica", mend)
    elif info.get("cluster_enabled"):
        mend = "use a server that is not in cluster mode"
        yield Finding(f"{check} role", "error", "the server is part of a cluster", mend)
    clients, most = int(info.get("connected_clients", 0)), int(info.get("maxclients", 0))
    if most and clients > most * _NEARLY_ALL_CLIENTS:
        yield Finding(f"{check} clients", "warning", f"{clients} of {most} clients", _TROUBLES["full"][1])


_OPERATOR: Final = "take the operator's user, which deploy/redis/users.acl calls default"


def _judge_formats(facts: Facts) -> Iterator[Finding]:
    if facts.formats is None and not any(server.trouble for server in facts.servers):
        yield Finding("tapes", "skipped", "this user may not look at the newest ones", _OPERATOR)
    if not facts.formats:
        return
    count = sum(facts.formats.values())
    unknown = sorted(str(format_) for format_ in facts.formats if format_ != FORMAT)
    if unknown:
        mend = "upgrade this installation; whoever wrote those tapes is newer, or shares the namespace by mistake"
        yield Finding(
            "tapes",
            "error",
            f"of the {count} newest, some have a format that is not known here: {', '.join(unknown)}",
            mend,
        )
    else:
        yield Finding("tapes", "ok", f"the {count} newest have the format that is known here, {FORMAT}")


def _judge_workers(facts: Facts) -> Iterator[Finding]:
    if facts.workers is None:
        if any(server.trouble for server in facts.servers):
            yield Finding("workers", "skipped", "needs the Redis server")
        else:
            yield Finding("workers", "skipped", "this user may not look at the workers' records", _OPERATOR)
        return
    live = [worker for worker in facts.workers if worker.lease_s > 0]
    waiting = f"{facts.queued} {'job waits' if facts.queued == 1 else 'jobs wait'}"
    if live:
        busy = sum(worker.jobs for worker in live)
        names = f"{len(live)} {'is' if len(live) == 1 else 'are'} alive"
        yield Finding("workers", "ok", f"{names}, with {busy} jobs; {waiting}")
    elif facts.queued:
        mend = "start one: tokentape worker, with this Redis address and the same namespace"
        yield Finding("workers", "error", f"none is alive, and {waiting}", f"{mend} ({facts.namespace!r})")
    else:
        yield Finding("workers", "warning", "none is alive; no job waits", "start one: tokentape worker")
    dead = [worker for worker in facts.workers if worker.lease_s <= 0]
    if dead:
        held = sum(worker.jobs for worker in dead)
        mend = (
            "nothing: the next sweep of a live worker takes its jobs over"
            if live
            else "start a worker: it takes them over"
        )
        yield Finding("workers", "warning", f"{_list(dead)} ended without a word, with {held} jobs", mend)
    other = [worker for worker in live if worker.version not in (None, __version__)]
    if other:
        versions = ", ".join(sorted({str(worker.version) for worker in other}))
        mend = "end the upgrade: see the page 'Upgrade without losing jobs'"
        yield Finding("workers", "warning", f"{_list(other)}: version {versions}, here it is {__version__}", mend)
    yield from _unserved(facts, live)


def _unserved(facts: Facts, live: Iterable[WorkerFacts]) -> Iterator[Finding]:
    """Upstreams that are configured here and that no live worker has. Older workers do not say what they have."""
    served = [worker.upstreams for worker in live]
    if not served or None in served:
        return
    known = {name for names in served for name in names or ()}
    for name in facts.configured:
        if name not in known:
            mend = "give the workers the same configuration, and start them again"
            yield Finding("workers", "warning", f"none serves the upstream {name!r} that is configured here", mend)


def _judge_upstreams(facts: Facts) -> Iterator[Finding]:
    if facts.upstreams is None:
        live = [worker.upstreams or () for worker in facts.workers or () if worker.lease_s > 0]
        served = ", ".join(sorted({name for names in live for name in names}))
        said = f"; the workers serve {served}" if served else ""
        yield Finding("upstreams", "skipped", f"{facts.unasked or 'not asked'}{said}")
        return
    for upstream in facts.upstreams:
        for finding in _judge_upstream(upstream):
            # Known by a key alone, it may not be what the workers have: nothing is sure to fail.
            presumed = finding.state == "error" and upstream.name not in facts.configured
            yield replace(finding, state="warning") if presumed else finding


_KEYS: Final = {"accepted": "takes the key", "none": "asks for no key"}
_DOUBTS: Final[Mapping[Doubt, tuple[str, str]]] = {
    "path": (
        "answers, but neither the path nor the key could be checked",
        "is its base_url right? Of OpenAI-compatible APIs most end in /v1, those of Anthropic and Gemini with the host",
    ),
    "list": (
        "does not show this key its list of models, so the key could not be checked",
        "calls may work all the same: try one, or let the key list models",
    ),
    "busy": ("is asked too often, so the key could not be checked", "wait a while, and run this again"),
}


def _judge_upstream(facts: UpstreamFacts) -> Iterator[Finding]:
    check = f"upstream {facts.name}"
    where = "api_key_env or api_key_file"
    if facts.code == UNUSABLE:
        mend = "correct it: a worker with this configuration does not start"
        yield Finding(check, "error", f"cannot be used: {facts.problem}", mend)
    elif facts.problem is not None:
        said = "was not reached" if facts.status is None else "answers with an error"
        what = "base_url, proxy or ca_file" if facts.status is None else "base_url"
        mend = f"correct its {what}, or wait until it is back: jobs for it are tried again, then fail"
        yield Finding(check, "error", f"{facts.address} {said}: {facts.problem}", mend)
    elif facts.doubt is not None:
        said, mend = _DOUBTS[facts.doubt]
        yield Finding(check, "warning", f"{facts.address} {said}: {facts.key_note}", mend)
    elif facts.key in ("refused", "missing"):
        said = "refuses the key" if facts.key == "refused" else "has no key"
        mend = f"give it a key that holds: {where} of the upstream, in the worker's environment"
        yield Finding(check, "error", f"{facts.address} {said}: {facts.key_note}", mend)
    else:
        said = _KEYS.get(facts.key, f"answers; the key is not checked: {facts.key_note}")
        yield Finding(check, "ok", f"{facts.address} {said}")
    for model in facts.unlisted:
        mend = f"correct upstreams.{facts.name}.models, or ask its operator"
        yield Finding(check, "warning", f"does not list the model {model!r}", mend)


def _list(workers: Iterable[WorkerFacts]) -> str:
    return ", ".join(sorted(worker.name for worker in workers))
