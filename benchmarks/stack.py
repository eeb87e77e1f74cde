"""The processes of a benchmark: a server, an upstream, workers, and whatever a rival needs.

Each is a process of its own, so that the CPU and the memory of one are nobody else's, and each ends with this one (see
tokentape.child). Everything listens on loopback. Settings are the defaults but for what a benchmark is about; the
upstream lets through as many calls as the worker has slots.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self, cast

import redis

from tokentape import Client
from tokentape.child import Child
from tokentape.demo import clean_environment
from tokentape.embedded import EmbeddedServer

from .harness import cpu_s, wait_for

ROOT: Final = Path(__file__).resolve().parent.parent
#: Until a process serves: imports on a busy machine.
START_WAIT_S: Final = 60.0


class Stack:
    """A server and an upstream, for a `with` block; workers and further processes as asked for.

    `settings` are of the workers and of this process's client, by their names in the environment without the prefix.
    """

    def __init__(self, *, concurrency: int = 256, **settings: str) -> None:
        self._concurrency = concurrency
        self._settings = settings
        self._stack = ExitStack()
        self._workers = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.server = stack.enter_context(EmbeddedServer())
            self.redis = stack.enter_context(redis.Redis.from_url(self.server.url))
            self._paths = os.pathsep.join(map(str, (ROOT, ROOT / "worker", ROOT / "producer")))
            self.environment = {**clean_environment(), "PYTHONPATH": self._paths}
            upstream = stack.enter_context(Child("upstream", "benchmarks.upstream", env=self.environment))
            self.base_url: str = upstream.wait_json(START_WAIT_S)["base_url"]
            self.environment |= {
                "TOKENTAPE_REDIS_URL": self.server.url,
                "TOKENTAPE_CONCURRENCY": str(self._concurrency),
                "TOKENTAPE_CONFIG": str(self._config()),
                **{f"TOKENTAPE_{name.upper()}": value for name, value in self._settings.items()},
            }
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _config(self) -> Path:
        path = self.directory / "tokentape.toml"
        path.write_text(f'[upstreams.default]\nbase_url = "{self.base_url}"\nmax_concurrency = {self._concurrency}\n')
        return path

    # ---- processes

    def child(self, name: str, module: str, *arguments: str) -> Child:
        """A process of a module; it ends with the stack."""
        return self._stack.enter_context(Child(name, module, *arguments, env=self.environment))

    def rival(self, *arguments: str) -> tuple[Child, dict[str, Any]]:
        """A program of rivals.py that has said that it is ready, and what it said."""
        child = self.child(arguments[0], "benchmarks.rivals", *arguments)
        return child, child.wait_json(START_WAIT_S)

    def program(self, *arguments: str) -> Child:
        """A program of programs.py that has said that it is ready."""
        child = self.child(arguments[0], "benchmarks.programs", *arguments)
        child.wait_json(START_WAIT_S)
        return child

    def worker(self, *arguments: str) -> Child:
        """A worker that holds its lease, and so works."""
        self._workers += 1
        child = self.child(f"worker {self._workers}", "tokentape_worker", *arguments)

        def ready() -> bool:
            child.check()
            return int(self.redis.zcard("tokentape:leases")) >= self._workers

        wait_for(ready, "the worker's lease", START_WAIT_S)
        return child

    # ---- jobs

    def submit(self, count: int, chunks: int, interval_ms: float = 0.0) -> list[str]:
        """Enqueue jobs whose answers have so many chunks at that pace. -> their ids"""
        with Client(self.server.url) as client:
            requests = (body(chunks, interval_ms) for _ in range(count))
            return [job.id for job in client.submit_many(requests, timeout_s=3600)]

    def ended(self) -> int:
        """Jobs that RQ's books call finished: the last thing that a worker does about a job."""
        return self.counted("rq:finished:tokentape-default")

    def queued(self) -> int:
        """Jobs that stand in the queue."""
        return int(cast("int", self.redis.llen("rq:queue:tokentape-default")))

    def counted(self, key: str) -> int:
        """How many members a sorted set of the server has."""
        return int(self.redis.zcard(key))

    def ids_file(self, ids: Sequence[str]) -> str:
        """A file of job ids, for a reader."""
        path = self.directory / f"{ids[0]}.ids"
        path.write_text("\n".join(ids))
        return str(path)

    def rate_until(self, count: int) -> float:
        """Jobs a second from now until so many have ended."""
        begun = time.monotonic()
        self.wait_ended(count)
        return count / (time.monotonic() - begun)

    def wait_ended(self, count: int, wait_s: float = 300.0) -> None:
        wait_for(lambda: self.ended() >= count, f"{count} jobs to end", wait_s)

    def upstream(self) -> dict[str, int]:
        """Calls, calls under way, chunks written so far."""
        with urllib.request.urlopen(self.base_url.removesuffix("/v1") + "/stats", timeout=30) as answer:
            stats: dict[str, int] = json.load(answer)
        return stats

    def cost_us(self, reader: Child, streams: int, window_s: float) -> float:
        """Microseconds of CPU that a process spends on a chunk, while so many streams are under way.

        Chunks are those that the upstream writes in the window. Raises RuntimeError where streams end in it.
        """
        wait_for(lambda: self.upstream()["active"] == streams, "all streams to be under way")
        time.sleep(min(0.5, window_s))  # what opening left behind
        cpu, chunks = cpu_s(reader.pid), self.upstream()["chunks"]
        time.sleep(window_s)
        cpu, stats = cpu_s(reader.pid) - cpu, self.upstream()
        if stats["active"] < streams:
            raise RuntimeError("streams ended while they were measured: this machine is too slow for these sizes")
        return cpu / (stats["chunks"] - chunks) * 1e6


def chunks_for(window_s: float, streams: int, chunks_per_s: float) -> int:
    """How many chunks a stream needs for `cost_us`: for the window, and while the others are opened before it."""
    return int(chunks_per_s * (window_s + 2.0 + streams / 100)) + 5


def body(chunks: int, interval_ms: float = 0.0) -> dict[str, Any]:
    """A request for a paced answer."""
    return {
        "model": "paced",
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "simulate": {"chunks": chunks, "interval_ms": interval_ms},
    }


def rate_between(counts: Sequence[tuple[float, int]]) -> float:
    """Things a second, from samples of (seconds, how many so far): the first and the last, so without the start."""
    (begun, first), (ended, last) = counts[0], counts[-1]
    return (last - first) / (ended - begun)


def sample_until(
    count: int, so_far: Callable[[], int], what: str, wait_s: float = 300.0, every_s: float = 0.02
) -> list[tuple[float, int]]:
    """Samples from when the first is there until `count` are."""
    samples: list[tuple[float, int]] = []

    def look() -> bool:
        done = so_far()
        if done:
            samples.append((time.monotonic(), done))
        return done >= count

    wait_for(look, what, wait_s, every_s)
    return samples
