"""W6: how many jobs a second does one process submit?

`submit_many` writes for each job its tape, its request, RQ's record and the queue's entry, in transactions of a few
hundred jobs. The rivals are RQ's own two calls, with the same request as the job's argument.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import redis
import rq

from tokentape import Client

from .harness import OURS, Bench, Run, Target, clocked, main
from .rivals import QUEUE, nothing
from .stack import Stack, body

RATE = "jobs submitted a second"
ENQUEUE, ENQUEUE_MANY = "rq enqueue", "rq enqueue_many"


@dataclass(frozen=True)
class Sizes:
    jobs: int = 10_000
    rival_jobs: int = 2_000


def measure(sizes: Sizes) -> Run:
    run = Run()
    with Stack() as stack:
        with Client(stack.server.url) as client, clocked() as seconds:
            submitted = sum(1 for _ in client.submit_many(body(20) for _ in range(sizes.jobs)))
            run.add(RATE, OURS, "/s", submitted / seconds())
        with redis.Redis.from_url(stack.server.url) as connection:
            queue = rq.Queue(QUEUE, connection=connection)
            with clocked() as seconds:
                for _ in range(sizes.rival_jobs):
                    queue.enqueue(nothing, body(20))
                run.add(RATE, ENQUEUE, "/s", sizes.rival_jobs / seconds())
            with clocked() as seconds:
                queue.enqueue_many([rq.Queue.prepare_data(nothing, (body(20),)) for _ in range(sizes.rival_jobs)])
                run.add(RATE, ENQUEUE_MANY, "/s", sizes.rival_jobs / seconds())
    return run


BENCH = Bench(
    id="W6",
    question="submit_many of 10,000 jobs",
    sizes=Sizes(),
    quick=Sizes(jobs=50, rival_jobs=10),
    measure=measure,
    targets=[Target(RATE, 5000.0, "least")],
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
