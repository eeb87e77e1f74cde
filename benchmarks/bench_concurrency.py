"""W2: a thousand streams at once in one worker process: do all complete, in how much memory, and is none starved?

Starved is a stream that takes much longer than the others, from submit to end. Memory is the most that the process
ever had resident, imports included. The rival is what a queue without an event loop needs: a stock `rq` worker for
each stream, in whose job openai-python reads it; pages that its processes share are counted once, in its favour.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass

from tokentape import Client

from . import rivals
from .harness import OURS, Bench, Run, Target, cpu_s, installed, main, peak_rss_mb, shared_memory_mb, wait_for
from .stack import Stack

COMPLETED = "streams that completed"
PEAK = "peak memory"
EACH = "memory a stream"
STARVED = "slowest stream over the median one"
RQ = "rq Worker, a process a stream"


@dataclass(frozen=True)
class Sizes:
    streams: int = 1000
    chunks: int = 100
    chunks_per_s: float = 10.0
    rival_streams: int = 6


def measure(sizes: Sizes) -> Run:
    run = Run()
    _ours(run, sizes)
    if installed(run, RQ, "openai"):
        _rival(run, sizes)
    return run


def _ours(run: Run, sizes: Sizes) -> None:
    with Stack(concurrency=sizes.streams) as stack:
        worker = stack.worker()
        begun_s = cpu_s(worker.pid)
        ids = stack.submit(sizes.streams, sizes.chunks, 1000 / sizes.chunks_per_s)
        stack.wait_ended(sizes.streams)
        peak = peak_rss_mb(worker.pid)
        cost_us = (cpu_s(worker.pid) - begun_s) / stack.upstream()["chunks"] * 1e6
        with Client(stack.server.url) as client:
            views = [client.status(job_id) for job_id in ids]
    took = [(view.ended_at or 0) - view.created_at for view in views]
    run.add(COMPLETED, OURS, "%", sum(view.status == "completed" for view in views) / len(views) * 100)
    run.add(PEAK, OURS, "MB", peak)
    run.add(EACH, OURS, "MB", peak / sizes.streams)
    run.add(STARVED, OURS, "times", max(took) / statistics.median(took))
    run.add("CPU a chunk, with opening and ending", OURS, "µs", cost_us)


def _rival(run: Run, sizes: Sizes) -> None:
    with Stack() as stack:
        workers = [stack.rival("rq-worker", "Worker")[0] for _ in range(sizes.rival_streams)]
        rivals.rq_enqueue_streams(stack.server.url, sizes.rival_streams, stack.base_url, sizes.chunks, 100.0)
        wait_for(lambda: stack.upstream()["active"] == sizes.rival_streams, "the rival's streams")
        time.sleep(0.5)
        run.add(EACH, RQ, "MB", sum(shared_memory_mb(worker.pid) for worker in workers) / len(workers))


BENCH = Bench(
    id="W2",
    question="1,000 streams at once in one worker process",
    sizes=Sizes(),
    quick=Sizes(streams=5, chunks=20, chunks_per_s=20.0, rival_streams=1),
    measure=measure,
    targets=[
        Target(COMPLETED, 100.0, "least"),
        Target(PEAK, 150.0, "most"),
        Target(STARVED, 1.5, "most"),
    ],
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
