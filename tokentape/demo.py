"""The demo: the whole stack on this machine, as processes, with a worker that is killed in the middle.

    Valkey (embedded)      the queue and the tapes
    an engine              who answers: see demo_engines.py
    worker 1               is killed with SIGKILL once streams are under way
    worker 2               starts at once, waits until the first one's lease is over, and finishes

This process submits the prompts and follows every tape, as an application would. It says of every answer whether it is
exact: the stored result against the chunks that this process read, and against what the engine should have said.

Everything ends with this process, however that ends: see child.py and embedded.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .async_client import AsyncClient
from .child import Child
from .chunk import ChatCompletionChunk
from .completion import ChatCompletion, Fold
from .demo_engines import Engine, difference
from .demo_view import View
from .embedded import EmbeddedServer
from .errors import ConfigError, InvalidRequest, JobError
from .job import ChatJob, parse_request
from .settings import Settings
from .tape import AttemptData, EndData, Entry

#: Beside this module in an installation; in the source tree a link to examples/prompts.jsonl.
PROMPTS: Final = Path(__file__).with_name("prompts.jsonl")
WAIT_S: Final = 600.0

#: Shorter than in production, where a lease is 5 s: a death is noticed in about a second.
_WORKER: Final = {
    "TOKENTAPE_LEASE_S": "1",
    "TOKENTAPE_SWEEP_S": "0.2",
    "TOKENTAPE_GRACE_S": "0",
    "TOKENTAPE_LOG_LEVEL": "warning",
}
#: A stream with so many chunks is well under way.
_UNDER_WAY_CHUNKS: Final = 5
_LOOK_EVERY_S: Final = 0.05


@dataclass
class Stream:
    """One prompt and what this process has read of its tape."""

    number: int
    job: ChatJob
    attempt: int = 0
    #: Of all attempts.
    chunks: int = 0
    fold: Fold = field(default_factory=Fold)
    end: EndData | None = None
    result: ChatCompletion | None = None
    #: What is wrong with the answer, once that is known.
    fault: str | None = None

    @property
    def running(self) -> bool:
        return self.attempt > 0 and self.end is None

    @property
    def question(self) -> str:
        content = self.job.request["messages"][-1].get("content")
        return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


@dataclass
class Kill:
    """The death of worker 1: when (ms since the epoch), what it was running, and when each of that ran again."""

    at_ms: float
    pid: int
    struck: list[Stream]
    again_ms: dict[int, float] = field(default_factory=dict)
    told: bool = False


class Demo:
    """One run of the demo. `streams` and `kill` tell what has happened so far."""

    def __init__(self, engine: Engine, streams: Sequence[Stream], view: View, *, kills: bool) -> None:
        self.streams = streams
        self.kill: Kill | None = None
        self.seconds = 0.0
        self._engine = engine
        self._view = view
        self._kills = kills
        self._environ: dict[str, str] = {}
        self._workers: list[Child] = []

    def run(self) -> None:
        """Start everything, wait for every answer, prove each, end everything.

        Raises what starting can raise: ExtraMissing, ConfigError, RedisUnavailable, ChildFailed.
        """
        with ExitStack() as stack:
            server = stack.enter_context(EmbeddedServer())
            self._view.note(f"server: Valkey at {server.url}")
            stack.enter_context(self._engine)
            self._view.note(f"engine: {self._engine.title}")
            self._environ = {
                **clean_environment(),
                **_WORKER,
                **self._engine.environment(),
                "TOKENTAPE_REDIS_URL": server.url,
                "TOKENTAPE_CONCURRENCY": str(self._engine.slots),
            }
            stack.callback(self._stop_workers)
            self._start_worker()
            settings = Settings.load({"TOKENTAPE_REDIS_URL": server.url})
            with self._view.showing(self.streams):
                asyncio.run(self._submit_and_follow(settings))
            self._view.note("asking for the right answers, and comparing")
            self._judge()

    def _start_worker(self) -> None:
        name = f"worker {len(self._workers) + 1}"
        self._workers.append(Child(name, "tokentape_worker", env=self._environ))
        self._view.note(f"{name} started (process {self._workers[-1].pid})")

    def _stop_workers(self) -> None:
        for worker in self._workers:
            worker.stop()

    async def _submit_and_follow(self, settings: Settings) -> None:
        async with AsyncClient(settings=settings) as client:
            started = time.monotonic()
            async for _ in client.submit_many([stream.job for stream in self.streams]):
                pass
            self._view.note(f"submitted {len(self.streams)} jobs; {self._engine.slots} run at once")
            watch = asyncio.create_task(self._watch_processes())
            followers = [asyncio.create_task(self._follow(client, stream)) for stream in self.streams]
            try:
                await _all_of(followers, unless=watch)
            finally:
                for task in (watch, *followers):
                    task.cancel()
                await asyncio.gather(watch, *followers, return_exceptions=True)
            self.seconds = time.monotonic() - started

    async def _follow(self, client: AsyncClient, stream: Stream) -> None:
        async for entry in client.follow(stream.job.id, wait_s=WAIT_S):
            self._take(stream, entry)
        try:
            stream.result = await client.result(stream.job.id)
        except JobError as error:
            stream.fault = f"{error.error.type}: {error.error.message}"
        self._view.ended(stream)

    def _take(self, stream: Stream, entry: Entry) -> None:
        data = entry.data
        if isinstance(data, AttemptData):
            stream.attempt, stream.fold = entry.position.attempt, Fold()
            if self.kill and stream.attempt > 1:
                self.kill.again_ms[stream.number] = data.started_at_ms - self.kill.at_ms
        elif isinstance(data, ChatCompletionChunk):
            stream.fold.add(data)
            stream.chunks += 1
        elif isinstance(data, EndData):
            stream.end = data
        self._tell_recovery()

    def _is_the_middle(self) -> bool:
        """Half of the jobs have ended, or else nothing waits any more; and half of what runs is well under way."""
        jobs, slots = len(self.streams), self._engine.slots
        ended = sum(stream.end is not None for stream in self.streams)
        under_way = sum(stream.running and stream.chunks >= _UNDER_WAY_CHUNKS for stream in self.streams)
        return ended >= min(jobs // 2, jobs - slots) and under_way * 2 >= min(slots, jobs - ended)

    def _kill_worker(self) -> None:
        worker = self._workers[-1]
        worker.kill()
        self.kill = Kill(time.time() * 1000, worker.pid, [stream for stream in self.streams if stream.running])
        struck = _numbers(self.kill.struck)
        self._view.note(f"{worker.name} killed (SIGKILL, process {worker.pid}) while it ran {struck}")
        self._start_worker()

    def _tell_recovery(self) -> None:
        kill = self.kill
        if kill is None or kill.told or not all(s.number in kill.again_ms or s.end for s in kill.struck):
            return
        kill.told = True
        again = [stream for stream in self.streams if stream.number in kill.again_ms]
        if again:
            first, last = (bound(kill.again_ms.values()) / 1000 for bound in (min, max))
            self._view.note(f"{_numbers(again)} restarted, and ran again {first:.1f} to {last:.1f} s after the kill")

    async def _watch_processes(self) -> None:
        """Kill the first worker in the middle. Raise ChildFailed where a process that should run does not."""
        while True:
            self._engine.check()
            self._workers[-1].check()
            # Here and not with each entry: entries may come late and many at once, and those that were read but not
            # yet looked at may be ends. Between two looks all that has arrived has been taken in.
            if self._kills and self.kill is None and self._is_the_middle():
                self._kill_worker()
            await asyncio.sleep(_LOOK_EVERY_S)

    def _judge(self) -> None:
        faults = self._engine.faults(
            [stream.job.request for stream in self.streams], [stream.result for stream in self.streams]
        )
        for stream, fault in zip(self.streams, faults, strict=True):
            if stream.result is not None:
                unlike = difference(stream.result, stream.fold.completion())
                stream.fault = fault or (unlike and f"is not what the tape's chunks add up to: {unlike}")


async def _all_of(tasks: Sequence[asyncio.Task[None]], *, unless: asyncio.Task[None]) -> None:
    """Wait for all tasks; raise what the first of them, or `unless`, raises."""
    left: set[asyncio.Task[None]] = {*tasks, unless}
    while left != {unless}:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


def _numbers(streams: Sequence[Stream]) -> str:
    return f"{len(streams)} job{'s' * (len(streams) != 1)} ({' '.join(f'#{stream.number}' for stream in streams)})"


# ---- what goes in


def clean_environment() -> dict[str, str]:
    """This process's environment without settings and keys: what the caller set is for other servers."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("TOKENTAPE_", "OPENAI_"))}


def read_prompts(path: Path, engine: Engine) -> list[Stream]:
    """The prompts of a file, one chat.completions body a line. Raises InvalidRequest, naming the line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    streams: list[Stream] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            job = ChatJob.create(engine.prepare(parse_request(line)), timeout_s=WAIT_S)
        except InvalidRequest as error:
            raise InvalidRequest(f"{path}, line {number}: {error}") from error
        streams.append(Stream(len(streams) + 1, job))
    if not streams:
        raise InvalidRequest(f"{path} holds no prompts")
    return streams


# ---- what comes out


def check_results(path: Path) -> None:
    """Raise ConfigError where the results cannot be written, or would replace a file that no demo has written."""
    there = path.exists()
    try:
        with path.open("r+" if there else "x", encoding="utf-8") as file:
            first = file.readline(1024) if there else ""
        if not there:
            path.unlink()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no demo has written it"
        raise ConfigError(f"--out: {path} cannot be written ({reason})") from error
    if first and not first.startswith('{"number": 1, "job_id": '):
        raise ConfigError(f"--out: {path} is there, and no demo has written it; name another file with --out")


def write_results(path: Path, streams: Sequence[Stream]) -> None:
    """One JSON object for each prompt, in their order."""
    with path.open("w", encoding="utf-8") as file:
        for stream in streams:
            row = {
                "number": stream.number,
                "job_id": stream.job.id,
                "status": stream.end.status if stream.end else None,
                "attempts": stream.attempt,
                "exact": stream.fault is None,
                "fault": stream.fault,
                "request": stream.job.request,
                "completion": stream.result.model_dump(mode="json", exclude_unset=True) if stream.result else None,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def summary(name: str, demo: Demo, out: Path) -> Mapping[str, Any]:
    """What `--json` prints. Times of first chunks count from the claim of the attempt that gave the answer."""
    streams = demo.streams
    chunks = sum(stream.chunks for stream in streams)
    waits = [
        stream.end.timings.first_chunk_ms
        for stream in streams
        if stream.end and stream.end.timings and stream.end.timings.first_chunk_ms is not None
    ]
    again = demo.kill.again_ms if demo.kill else {}
    return {
        "engine": name,
        "jobs": len(streams),
        "exact": sum(stream.fault is None for stream in streams),
        "seconds": round(demo.seconds, 3),
        "chunks": chunks,
        "chunks_per_s": round(chunks / demo.seconds, 1),
        "first_chunk_ms": {"median": statistics.median(waits), "worst": max(waits)} if waits else None,
        "worker_killed": demo.kill is not None,
        "attempts_restarted": sum(max(0, stream.attempt - 1) for stream in streams),
        "restarted": [stream.job.id for stream in streams if stream.attempt > 1],
        "ran_again_after_s": {"first": min(again.values()) / 1000, "last": max(again.values()) / 1000}
        if again
        else None,
        "results": str(out),
        "faults": {stream.job.id: stream.fault for stream in streams if stream.fault is not None},
    }
