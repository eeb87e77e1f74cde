"""W4: how many jobs a second goes one worker through?

Ours calls an API in each job, which answers with one chunk, and writes the tape. The rivals' jobs do nothing at all:
the cost of a queue, and no call. Stock RQ in both its ways, and streaQ, an asyncio queue without RQ's records. The jobs
stand in the queue when the worker starts; counted is what its queue calls finished, from the first to the last.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from . import rivals
from .harness import OURS, Bench, Run, Target, cpu_s, installed, main
from .stack import Stack, rate_between, sample_until

RATE = "jobs a second"
COST = "CPU a job"
FORK = "rq Worker, empty jobs"
SIMPLE = "rq SimpleWorker, empty jobs"
STREAQ = "streaQ, empty jobs"


@dataclass(frozen=True)
class Sizes:
    jobs: int = 3000
    concurrency: int = 256
    fork_jobs: int = 200
    simple_jobs: int = 1000
    streaq_jobs: int = 5000


def measure(sizes: Sizes) -> Run:
    run = Run()
    with Stack(concurrency=sizes.concurrency) as stack:
        stack.submit(sizes.jobs, chunks=1)
        worker = stack.worker()
        _count(run, OURS, sizes.jobs, stack.ended, worker.pid)
    for who, kind, jobs in ((FORK, "Worker", sizes.fork_jobs), (SIMPLE, "SimpleWorker", sizes.simple_jobs)):
        with Stack() as stack:
            rivals.rq_enqueue(stack.server.url, jobs)
            rival, _ = stack.rival("rq-worker", kind)
            _count(run, who, jobs, lambda: stack.counted(rivals.RQ_FINISHED), rival.pid)
    if installed(run, STREAQ, "streaq"):
        with Stack() as stack:
            rivals.streaq_enqueue(stack.server.url, sizes.streaq_jobs)
            rival, _ = stack.rival("streaq-worker", str(sizes.concurrency))
            _count(run, STREAQ, sizes.streaq_jobs, lambda: stack.counted(rivals.STREAQ_FINISHED), rival.pid)
    return run


def _count(run: Run, who: str, jobs: int, finished: Callable[[], int], pid: int) -> None:
    """Rate and CPU from the first finished job to the last."""
    sample_until(1, finished, f"the first job of {who}")
    begun_s = cpu_s(pid)
    samples = sample_until(jobs, finished, f"{jobs} jobs of {who}")
    run.add(RATE, who, "/s", rate_between(samples))
    run.add(COST, who, "ms", (cpu_s(pid) - begun_s) / (samples[-1][1] - samples[0][1]) * 1e3)


BENCH = Bench(
    id="W4",
    question="Jobs a second through one worker, answers of one chunk",
    sizes=Sizes(),
    quick=Sizes(jobs=30, concurrency=10, fork_jobs=4, simple_jobs=10, streaq_jobs=30),
    measure=measure,
    targets=[Target(RATE, 400.0, "least")],
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
