"""What `tokentape doctor` says of facts that a test cannot bring about on this machine."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tokentape.doctor import judge
from tokentape.doctor_facts import Doubt, Facts, ServerFacts, Trouble, UpstreamFacts, WorkerFacts

INFO = {
    "redis_version": "7.2.4",
    "server_name": "valkey",
    "valkey_version": "8.1.3",
    "aof_enabled": 1,
    "maxmemory": 1000,
    "used_memory": 10,
    "maxmemory_policy": "noeviction",
    "role": "master",
    "connected_clients": 3,
    "maxclients": 10_000,
}


def server(info: dict[str, Any] | None = None, **known: Any) -> ServerFacts:
    return ServerFacts("redis_url", "the default", "redis://127.0.0.1:6379/0", info=INFO | (info or {}), **known)


def judged(**facts: Any) -> dict[str, tuple[str, str]]:
    """-> {check: (state, message)}, the worst of each check; of a server there is one finding for each check"""
    findings = list(judge(Facts(**{"servers": (server(),), "workers": (), **facts})))
    checks = Counter(finding.check for finding in findings if finding.check.startswith("redis_url"))
    assert set(checks.values()) <= {1}
    findings.sort(key=lambda finding: ["skipped", "ok", "warning", "error"].index(finding.state))
    return {finding.check: (finding.state, f"{finding.message} {finding.mend or ''}".strip()) for finding in findings}


@pytest.mark.parametrize(
    ("info", "check", "state", "words"),
    [
        ({"valkey_version": "7.1.9"}, "version", "error", "Valkey 7.1.9 is too old"),
        ({"server_name": "", "valkey_version": None, "redis_version": "6.2.1"}, "version", "error", "take Redis 7.0"),
        ({"server_name": "", "valkey_version": None, "redis_version": "10.0.1"}, "version", "ok", "Redis 10.0.1"),
        ({"aof_enabled": 0}, "persistence", "warning", "appendonly yes"),
        ({"aof_enabled": 0, "aof_last_write_status": "err"}, "persistence", "warning", "no append-only file"),
        ({"maxmemory": 0}, "memory", "warning", "without a limit set maxmemory"),
        ({"maxmemory": 0, "total_system_memory": 2**31}, "memory", "warning", "; the machine has 2048 MB"),
        ({"used_memory": 800}, "memory", "ok", "noeviction"),
        ({"used_memory": 801}, "memory", "warning", "shorten TOKENTAPE_RETENTION_S"),
        ({"used_memory": 951}, "memory", "error", "submitting is refused"),
        ({"used_memory": 951, "mem_not_counted_for_evict": 200}, "memory", "ok", "noeviction"),
        ({"maxmemory_policy": "volatile-lru"}, "memory", "error", "maxmemory-policy is volatile-lru"),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": 0}, "memory", "warning", "is allkeys-lru"),
        ({"role": "slave"}, "role", "error", "replica"),
        ({"cluster_enabled": 1}, "role", "error", "cluster"),
        ({"cluster_enabled": 1, "role": "slave"}, "role", "error", "replica"),
        ({"connected_clients": 9_000}, "clients", "warning", "9000 of 10000"),
    ],
)
def test_servers(info: dict[str, Any], check: str, state: str, words: str) -> None:
    found = judged(servers=(server(info),))[f"redis_url {check}"]
    assert found[0] == state
    assert words in found[1]


SAVES = {"save": "3600 1", "stop-writes-on-bgsave-error": "yes"}


@pytest.mark.parametrize(
    ("info", "config", "state", "words"),
    [
        ({"aof_last_write_status": "err"}, None, "error", "refuses writes"),
        ({"rdb_last_bgsave_status": "err"}, SAVES, "error", "refuses writes"),
        ({"rdb_last_bgsave_status": "err", "aof_enabled": 0}, SAVES, "error", "refuses writes"),
        ({"rdb_last_bgsave_status": "err"}, SAVES | {"save": ""}, "warning", "could not be written look at"),
        ({"rdb_last_bgsave_status": "err"}, SAVES | {"stop-writes-on-bgsave-error": "no"}, "warning", "look at"),
        ({"rdb_last_bgsave_status": "err"}, None, "warning", "only CONFIG GET could tell"),
    ],
)
def test_a_disk_that_is_full(info: dict[str, Any], config: dict[str, str] | None, state: str, words: str) -> None:
    found = judged(servers=(server(info, config=config),))["redis_url persistence"]
    assert found[0] == state
    assert words in found[1]
    assert "disk" in found[1]


@pytest.mark.parametrize(("ahead_s", "words"), [(60.0, "60 s ahead of"), (-9.0, "9 s behind")])
def test_clocks(ahead_s: float, words: str) -> None:
    state, message = judged(servers=(server(clock_ahead_s=ahead_s),))["redis_url clock"]
    assert state == "warning"
    assert words in message
    assert "NTP" in message


def test_a_server_far_away() -> None:
    assert judged(servers=(server(round_trip_ms=250.0),))["redis_url"][0] == "warning"


@pytest.mark.parametrize("trouble", Trouble.__args__)  # type: ignore[attr-defined]
def test_every_trouble_has_a_mend(trouble: Trouble) -> None:
    findings = list(judge(Facts(servers=(server(trouble=trouble, detail="as it says"),))))
    assert [finding.state for finding in findings if finding.check == "redis_url"] == ["error"]
    assert all(finding.mend for finding in findings if finding.check == "redis_url")


def test_workers_that_are_dead_older_or_of_another_version() -> None:
    dead = WorkerFacts("w1", lease_s=-3, jobs=2)
    other = WorkerFacts("w2", lease_s=4, jobs=0, upstreams=("main",), version="0.0.1")
    alone = judged(workers=(dead,))["workers"]
    assert alone[0] == "warning"
    assert "start a worker" in alone[1]
    assert "w2: version 0.0.1" in judged(workers=(other,))["workers"][1]
    older = WorkerFacts("w3", lease_s=4, jobs=0)
    assert judged(workers=(older,), configured=("main",))["workers"][0] == "ok"


def test_tapes_of_a_newer_version() -> None:
    state, message = judged(formats={1: 4, 2: 1, None: 1})["tapes"]
    assert state == "error"
    assert "of the 6 newest" in message
    assert ": 2, None" in message


def test_what_is_served_is_told_where_nothing_is_configured() -> None:
    one = WorkerFacts("w1", lease_s=4, jobs=0, upstreams=("main", "other"))
    assert judged(workers=(one,), unasked="none here")["upstreams"] == (
        "skipped",
        "none here; the workers serve main, other",
    )


def test_an_upstream_that_answers_with_an_error() -> None:
    facts = UpstreamFacts("main", "api.test", key="unchecked", status=503, problem="overloaded")
    state, message = judged(upstreams=(facts,), configured=("main",))["upstream main"]
    assert state == "error"
    assert "api.test answers with an error: overloaded" in message


def test_an_upstream_that_only_a_key_stands_for_is_no_error() -> None:
    facts = UpstreamFacts("default", "api.test", key="refused", key_note="as it says")
    assert judged(upstreams=(facts,))["upstream default"][0] == "warning"
    assert judged(upstreams=(facts,), configured=("default",))["upstream default"][0] == "error"


@pytest.mark.parametrize("doubt", Doubt.__args__)  # type: ignore[attr-defined]
def test_every_doubt_is_a_warning_with_a_mend(doubt: Doubt) -> None:
    facts = UpstreamFacts("main", "api.test", key="unchecked", doubt=doubt, key_note="as it says")
    (finding,) = (one for one in judge(Facts(upstreams=(facts,))) if one.check == "upstream main")
    assert finding.state == "warning"
    assert finding.message.endswith(" be checked: as it says")
    assert finding.mend
