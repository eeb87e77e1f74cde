"""Jobs whose upstream fails, the weather that their workers meet, and what must become of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import redis
from hypothesis import strategies as st

from tokentape import Client, Job
from tokentape.chunk import ChatCompletionChunk
from tokentape.queue import QueueKeys
from tokentape.tape import AttemptData

from .conftest import Stage, wait_until

BEFORE = ("status", "rate_limit", "disconnect_before", "stall_before", "html", "empty", "wrong_json")
IN_STREAM = ("disconnect", "truncate", "stall", "malformed", "error_event")
#: What is complete all the same.
HARMLESS = ("no_done", "split_bytes")
#: `max_attempts`, as Stage has it.
BUDGET = 3


class Broken(NamedTuple):
    """A script that never heals: the type of its failure, and how many calls and attempts come before it."""

    script: dict[str, Any]
    type: str
    calls: int = BUDGET
    attempts: int = 1


BROKEN = {
    "status": Broken({"fault": "status"}, "upstream_error"),
    "status 408": Broken({"fault": "status", "status": 408}, "timeout"),
    "status 400": Broken({"fault": "status", "status": 400}, "invalid_request", calls=1),
    "status 401": Broken({"fault": "status", "status": 401}, "authentication_error", calls=1),
    "status 402": Broken({"fault": "status", "status": 402}, "quota_exceeded", calls=1),
    # The time that upstream names is past the job's.
    "rate_limit": Broken({"fault": "rate_limit", "retry_after": 60}, "rate_limited", calls=1),
    "disconnect_before": Broken({"fault": "disconnect_before"}, "upstream_error"),
    "stall_before": Broken({"fault": "stall_before"}, "timeout"),
    "html": Broken({"fault": "html"}, "upstream_error"),
    "empty": Broken({"fault": "empty"}, "upstream_error"),
    "wrong_json": Broken({"fault": "wrong_json"}, "upstream_error"),
    "disconnect": Broken({"fault": "disconnect"}, "upstream_error", attempts=BUDGET),
    "truncate": Broken({"fault": "truncate"}, "upstream_error", attempts=BUDGET),
    "stall": Broken({"fault": "stall"}, "timeout", attempts=BUDGET),
    "malformed": Broken({"fault": "malformed"}, "upstream_error", attempts=BUDGET),
    "error_event": Broken({"fault": "error_event"}, "upstream_error", attempts=BUDGET),
    "huge": Broken({"fault": "huge"}, "output_too_large", calls=1),
}


def attempts(job: Job) -> list[tuple[str, str]]:
    """Why each attempt of an ended job began, and the text that came in it. The tape must be whole, with one end."""
    found: list[tuple[str, str]] = []
    kinds = []
    for entry in job.follow():  # raises CorruptTape where it is not dense
        kinds.append(entry.kind)
        if isinstance(entry.data, AttemptData):
            found.append((entry.data.reason, ""))
        elif isinstance(entry.data, ChatCompletionChunk):
            reason, text = found[-1]
            found[-1] = reason, text + "".join(choice.delta.content or "" for choice in entry.data.choices)
    assert kinds.count("end") == 1
    assert kinds[-1] == "end"
    return found


@dataclass(frozen=True)
class Asked:
    """A job of a mix. `fails` is the type of its failure, None where it must be answered."""

    script: dict[str, Any]
    fails: str | None = None

    @property
    def upstream(self) -> str:
        """Of ALLOWED."""
        return "heals" if self.fails is None else "breaks"


@dataclass(frozen=True)
class Gust:
    """What befalls worker `which` once the tapes of a mix have `at` entries from workers."""

    at: int
    what: str
    which: int


#: What costs the jobs of a worker an attempt.
LOSSY = ("kill", "freeze")
MOST_GUSTS = 3
#: `max_attempts` of a mix's upstreams: enough for each fault and gust that may meet a job, and soon spent.
ALLOWED = {"heals": 2 + MOST_GUSTS + 2, "breaks": 2}

pace = {
    "chunks": st.integers(0, 60),
    "interval_ms": st.sampled_from([10, 20, 0]),
    "first_token_ms": st.sampled_from([0, 100]),
}
after = {"fault_after": st.integers(0, 60)}
healing = st.fixed_dictionaries(
    {
        **pace,
        "fault": st.lists(st.sampled_from([*BEFORE, *IN_STREAM, *HARMLESS]), max_size=3, unique=True),
        "fault_times": st.integers(1, 2),
        "status": st.sampled_from([408, 500, 503, 529]),
        "retry_after": st.sampled_from([None, 0.02, 0.4]),
    },
    optional=after,
).map(Asked)


def lasting(name: str) -> st.SearchStrategy[Asked]:
    broken = BROKEN[name]
    faults = st.sampled_from([[broken.script["fault"]], [broken.script["fault"], "split_bytes"]])
    drawn = st.fixed_dictionaries({**pace, "fault": faults}, optional=after)
    return drawn.map(lambda script: Asked({**broken.script, **script}, broken.type))


asked = st.one_of(healing, st.sampled_from(sorted(BROKEN)).flatmap(lasting))
gust = st.builds(
    Gust,
    at=st.integers(0, 100),
    what=st.sampled_from([*LOSSY, "thaw", "drain", "cut"]),
    which=st.integers(0, 1),
)


def assert_at_rest(client: Client, redis_client: redis.Redis) -> None:
    """Nobody owns a job, and none stands anywhere."""
    namespace = client.settings.namespace
    wait_until(lambda: redis_client.hlen(QueueKeys(namespace).owners) == 0)
    assert not list(redis_client.scan_iter(f"{namespace}:worker:*"))
    seen = client.overview()
    assert (set(seen.queued.values()), seen.suspects, seen.waiting) == ({0}, 0, 0)


class Weather:
    """Two workers at any time, and what befalls them."""

    def __init__(self, namespace: str, start: Callable[[], BaseProcess], redis_client: redis.Redis) -> None:
        self._leases = QueueKeys(namespace).leases
        self._start = start
        self._redis = redis_client
        self.live = [start(), start()]
        self.left: list[BaseProcess] = []
        self._frozen: BaseProcess | None = None

    def befall(self, gust: Gust, tapes: list[str]) -> None:
        """Wait until the tapes are as long as the gust says, or over, and let it happen."""
        wait_until(lambda: self._have_come_to(gust.at, tapes))
        process = self.live[gust.which]
        if gust.what == "cut":
            own = self._redis.client_id()
            for one in self._redis.client_list():
                if int(one["id"]) != own:
                    self._redis.client_kill_filter(_id=one["id"])
        elif gust.what == "kill":
            Stage.kill(process)
            self.live[gust.which] = self._start()
        else:
            self.thaw()  # one at a time, so that somebody works
            if gust.what == "freeze":
                self._frozen = process
                _signal(process, signal.SIGSTOP)
            elif gust.what == "drain":
                wait_until(lambda: self._has_joined(process))
                _signal(process, signal.SIGTERM)
                self.left.append(process)
                self.live[gust.which] = self._start()

    def thaw(self) -> None:
        if self._frozen is not None and self._frozen.is_alive():
            _signal(self._frozen, signal.SIGCONT)
        self._frozen = None

    def _have_come_to(self, at: int, tapes: list[str]) -> bool:
        pipeline = self._redis.pipeline(transaction=False)
        for tape in tapes:
            pipeline.xlen(tape)
            pipeline.xrevrange(tape, count=1)
        replies = pipeline.execute()
        over = all(rows[0][1][b"kind"] == b"end" for rows in replies[1::2])
        return over or sum(replies[::2]) - len(tapes) >= at

    def _has_joined(self, process: BaseProcess) -> bool:
        names: Any = self._redis.zrange(self._leases, 0, -1)
        return any(name.decode().split(".")[-2] == str(process.pid) for name in names)


def _signal(process: BaseProcess, number: signal.Signals) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)
