"""W8: do two workers do twice the work of one?

Answers that take a second, workers with 50 slots, so that waiting for answers is what takes the time. From the
moment that all jobs are queued to the last end, with as many waves of jobs for two workers as for one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from .harness import OURS, Bench, Run, Target, main
from .stack import Stack

RATE = "jobs a second"
ONE = "one worker"


@dataclass(frozen=True)
class Sizes:
    slots: int = 50
    waves: int = 8
    chunks: int = 10
    answer_s: float = 1.0


def measure(sizes: Sizes) -> Run:
    run = Run()
    run.add(RATE, ONE, "/s", _rate(sizes, 1))
    run.add(RATE, OURS, "/s", _rate(sizes, 2))
    return run


def _rate(sizes: Sizes, workers: int) -> float:
    jobs = sizes.slots * sizes.waves * workers
    with Stack(concurrency=sizes.slots) as stack:
        for _ in range(workers):
            stack.worker()
        stack.submit(jobs, sizes.chunks, sizes.answer_s * 1000 / sizes.chunks)
        return stack.rate_until(jobs)


BENCH = Bench(
    id="W8",
    question="Two workers of 50 slots on answers that take a second",
    sizes=Sizes(),
    quick=Sizes(slots=3, waves=2, chunks=2, answer_s=0.1),
    measure=measure,
    targets=[Target(RATE, 1.9, "least", ONE, "ratio")],
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
