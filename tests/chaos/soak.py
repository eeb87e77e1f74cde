"""The soak: minutes of jobs while workers and the server are killed at random, and then the count.

    script/chaos [--minutes 10] [--seed N] [--workers 4] [--flight 300] [--json]

Real processes, a real Valkey with an append-only file that is written through, and the simulator, whose right answers
are known. Every action is drawn from the seed. At the end every job that was submitted is looked at: whether it ended,
once, with exactly its text, and how long each job whose worker was killed waited until it ran again: from the kill to
the next attempt on its tape. Exit code 0 only where nothing was lost, doubled, or wrong, and no recovery took longer
than the promise of 10 s. A kill within an outage of the server is counted apart: nothing can run while it is away.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import redis

from tokentape import Client, Job, JobError, Settings, TokentapeError
from tokentape.child import Child
from tokentape.embedded import EmbeddedServer
from tokentape.simulator import expected_text
from tokentape.tape import AttemptData

PROMISE_S: Final = 10.0
_CONFIG: Final = """
[upstreams.default]
base_url = "{base_url}"
max_attempts = 50
idle_timeout_s = 3
first_chunk_timeout_s = 5
"""


@dataclass
class Count:
    """What is printed at the end. All but the first two, and the times, are to be zero."""

    submitted: int = 0
    ended: int = 0
    lost: int = 0
    failed: int = 0
    wrong_text: int = 0
    doubled: int = 0
    more_than_one_end: int = 0
    workers_killed: int = 0
    workers_frozen: int = 0
    workers_drained: int = 0
    workers_ended: int = 0
    server_kills: int = 0
    connections_cut: int = 0
    attempts_restarted: int = 0
    recoveries: int = 0
    median_recovery_s: float = 0.0
    p99_recovery_s: float = 0.0
    slowest_recovery_s: float = 0.0
    slowest_recovery_with_outage_s: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        bad = self.lost + self.failed + self.wrong_text + self.doubled + self.more_than_one_end
        return bad == 0 and self.ended == self.submitted and self.slowest_recovery_s <= PROMISE_S


class Soak:
    """One run. `dice` decides everything that is left to chance."""

    def __init__(
        self, client: Client, environment: dict[str, str], dice: random.Random, workers: int, flight: int
    ) -> None:
        self._client = client
        self._environment = environment
        self._dice = dice
        self._flight = flight
        self._workers: list[Child] = []
        self._frozen: list[tuple[float, Child]] = []
        self._killed_at: dict[int, float] = {}
        self._outages: list[tuple[float, float]] = []
        self._jobs: deque[tuple[Job, dict[str, Any]]] = deque()
        self._number = 0
        self._recoveries: list[tuple[float, bool]] = []
        self.count = Count()
        for _ in range(workers):
            self._start()

    def close(self) -> None:
        for _, worker in self._frozen:
            worker.kill()
        for worker in self._workers:
            worker.kill()
            worker.stop()

    # ---- load

    def feed(self) -> None:
        """Keep the flight full, and look at what has ended."""
        self._harvest()
        missing = self._flight - len(self._jobs)
        if missing <= 0:
            return
        requests = [self._request() for _ in range(min(missing, 50))]
        with contextlib.suppress(TokentapeError):  # the server is away: ids are drawn anew
            for job, request in zip(self._client.submit_many(requests), requests, strict=True):
                self._jobs.append((job, request))
                self.count.submitted += 1

    def _request(self) -> dict[str, Any]:
        self._number += 1
        script: dict[str, Any] = {
            "chunks": self._dice.randint(1, 120),
            "interval_ms": self._dice.choice([0, 5, 20, 40]),
        }
        if self._dice.random() < 0.15:
            script["fault"] = self._dice.choice(
                ["truncate", "disconnect", "disconnect_before", "status", "rate_limit", "malformed", "stall"]
            )
            script["fault_times"] = 1
            if script["fault"] == "rate_limit":
                script["retry_after"] = self._dice.choice([0.1, 1, 5])
        messages = [{"role": "user", "content": f"soak {self._number}"}]
        return {"model": "soak", "messages": messages, "simulate": script}

    def _harvest(self) -> None:
        for _ in range(min(len(self._jobs), 100)):
            job, request = self._jobs[0]
            with contextlib.suppress(TokentapeError):
                if job.status().ended_at is None:
                    self._jobs.rotate(-1)
                    continue
                self._jobs.popleft()
                self._judge(job, request)
                continue
            return

    def _judge(self, job: Job, request: dict[str, Any]) -> None:
        self.count.ended += 1
        try:
            text = job.result(wait_s=5).text
        except JobError as error:
            self.count.failed += 1
            self.count.errors[error.error.type] = self.count.errors.get(error.error.type, 0) + 1
            return
        entries = list(job.follow(wait_s=5))
        last_attempt = [entry for entry in entries if entry.position.attempt == entries[-1].position.attempt]
        pieces = [e.data.choices[0].delta.content or "" for e in last_attempt if e.kind == "chunk" and e.data.choices]  # type: ignore[union-attr]
        self.count.wrong_text += text != expected_text(request)
        self.count.doubled += "".join(pieces) != text
        self.count.more_than_one_end += [entry.kind for entry in entries].count("end") != 1
        self._note_recoveries([entry.expect(AttemptData) for entry in entries if entry.kind == "attempt"])

    def _note_recoveries(self, attempts: list[AttemptData]) -> None:
        self.count.attempts_restarted += len(attempts) - 1
        for before, after in itertools.pairwise(attempts):
            killed_at = self._killed_at.get(int(before.worker.split(".")[-2]))
            if after.reason != "worker_lost" or killed_at is None:
                continue
            ran_at = after.started_at_ms / 1000
            outage = any(begun < ran_at and ended > killed_at - 1 for begun, ended in self._outages)
            self._recoveries.append((ran_at - killed_at, outage))

    # ---- weather

    def strike(self) -> None:
        """One thing goes wrong."""
        happenings: list[tuple[int, Callable[[], None]]] = [(8, self._kill), (3, self._freeze), (2, self._drain)]
        act = self._dice.choices([act for _, act in happenings], [weight for weight, _ in happenings])[0]
        act()

    def tend(self) -> None:
        """What a supervisor does: start again what has ended by itself. And thaw what is due."""
        for worker in list(self._workers):
            try:
                worker.check()
            except TokentapeError:
                self._workers.remove(worker)
                worker.stop()
                self.count.workers_ended += 1
                self._start()
        for until, worker in list(self._frozen):
            if time.monotonic() >= until:
                self._frozen.remove((until, worker))
                os.kill(worker.pid, signal.SIGCONT)
                self._workers.append(worker)

    def cut_connections(self, connection: redis.Redis) -> None:
        with contextlib.suppress(redis.RedisError):
            connection.client_kill_filter(_type="normal", skipme=True)
            self.count.connections_cut += 1

    def kill_server(self, server: EmbeddedServer) -> None:
        begun = time.time()
        server.kill()
        time.sleep(self._dice.uniform(0.0, 2.0))
        server.restart()
        self._outages.append((begun, time.time()))
        self.count.server_kills += 1

    def _start(self) -> None:
        self._workers.append(Child("worker", "tokentape_worker", env=self._environment))

    def _any(self) -> Child | None:
        return self._dice.choice(self._workers) if len(self._workers) > 1 else None

    def _kill(self) -> None:
        if (worker := self._any()) is not None:
            self._workers.remove(worker)
            worker.kill()
            self._killed_at[worker.pid] = time.time()
            worker.stop()
            self.count.workers_killed += 1
            self._start()

    def _freeze(self) -> None:
        if (worker := self._any()) is not None:
            self._workers.remove(worker)
            os.kill(worker.pid, signal.SIGSTOP)
            self._frozen.append((time.monotonic() + self._dice.uniform(1, 9), worker))
            self.count.workers_frozen += 1

    def _drain(self) -> None:
        if (worker := self._any()) is not None:
            self._workers.remove(worker)
            worker.stop()
            self.count.workers_drained += 1
            self._start()

    # ---- the end

    def finish(self, wait_s: float) -> Count:
        """Let everything end, and count."""
        until = time.monotonic() + wait_s
        while self._jobs and time.monotonic() < until:
            self.tend()
            self._harvest()
            time.sleep(0.01)
        self.count.lost = len(self._jobs)
        plain = [seconds for seconds, outage in self._recoveries if not outage]
        with_outage = [seconds for seconds, outage in self._recoveries if outage]
        self.count.recoveries = len(self._recoveries)
        self.count.median_recovery_s = round(statistics.median(plain), 2) if plain else 0.0
        if len(plain) > 1:
            self.count.p99_recovery_s = round(statistics.quantiles(plain, n=100)[98], 2)
        self.count.slowest_recovery_s = round(max(plain, default=0.0), 2)
        self.count.slowest_recovery_with_outage_s = round(max(with_outage, default=0.0), 2)
        return self.count


def run(minutes: float, seed: int, workers: int, flight: int) -> Count:
    """One soak of so many minutes, and the time that its last jobs take to end."""
    dice = random.Random(seed)
    with contextlib.ExitStack() as close:
        folder = Path(close.enter_context(tempfile.TemporaryDirectory()))
        server = close.enter_context(EmbeddedServer(data=folder / "data", config={"appendfsync": "always"}))
        simulator = close.enter_context(
            Child("simulator", "tokentape.cli", "simulate", "--port", "0", "--json", env=dict(os.environ))
        )
        config = folder / "tokentape.toml"
        config.write_text(_CONFIG.format(base_url=simulator.wait_json(20)["base_url"]))
        environment = {
            **os.environ, "TOKENTAPE_REDIS_URL": server.url, "TOKENTAPE_CONFIG": str(config),
            "TOKENTAPE_LOG_LEVEL": "error", "TOKENTAPE_GRACE_S": "1",
        }  # fmt: skip
        settings = Settings.load({}, redis_url=server.url, redis_wait_s=2.0)
        client = close.enter_context(Client(settings=settings))
        connection = close.enter_context(redis.Redis.from_url(server.url))
        soak = Soak(client, environment, dice, workers, flight)
        close.callback(soak.close)
        until = time.monotonic() + minutes * 60
        strike_at = time.monotonic() + 8  # the first leases are steady by then
        server_at = time.monotonic() + 30
        cut_at = time.monotonic() + 12
        shown_at = 0.0
        while (now := time.monotonic()) < until:
            soak.feed()
            soak.tend()
            if now >= strike_at:
                soak.strike()
                strike_at = now + dice.uniform(2, 8)
            if now >= cut_at:
                soak.cut_connections(connection)
                cut_at = now + dice.uniform(5, 20)
            if now >= server_at:
                soak.kill_server(server)
                server_at = now + dice.uniform(30, 60)
            if now >= shown_at:
                left = max(0, round(until - now))
                say(f"soak: {soak.count.submitted} submitted, {soak.count.ended} ended, {left} s left", file=sys.stderr)
                shown_at = now + 15
            time.sleep(0.01)
        return soak.finish(wait_s=120)


def say(text: str, file: Any = None) -> None:
    (file or sys.stdout).write(f"{text}\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="script/chaos", description="Kill workers and the server at random, and count."
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="replays the same schedule of actions")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--flight", type=int, default=300, help="jobs under way at once")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    say(f"soak: seed {seed}", file=sys.stderr)
    try:
        count = run(options.minutes, seed, options.workers, options.flight)
    except KeyboardInterrupt:
        return 130
    if options.json:
        say(json.dumps({"seed": seed, **asdict(count)}))
    else:
        for name, value in asdict(count).items():
            say(f"{name.replace('_', ' '):32} {value}")
    return 0 if count.right else 1


if __name__ == "__main__":
    sys.exit(main())
