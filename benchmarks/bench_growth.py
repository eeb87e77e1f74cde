"""Does a chunk cost the same in a long answer as in a short one, beside a thousand streams as beside none, and a job
the same behind a hundred thousand others?

    length      answers of one length after the other, the same number of chunks in all; what a job of one chunk costs
                is taken off, so that what is left is the chunks'. CPU of the worker.
    replay      those answers, read again and assembled by a client, by the clock: the fastest of some replays.
    streams     the same number of chunks a second, spread over more and more streams. CPU of the worker.
    queue       the same number of jobs, from a queue that holds so many; a short one is kept filled. CPU of the worker.

`last over first` says what the right end of a curve is of its left end: at most 1 where nothing grows.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tokentape import Client
from tokentape.child import Child

from .harness import OURS, Bench, Run, Target, clocked, cpu_s, main
from .stack import Stack, chunks_for, sample_until

LENGTH = "CPU a chunk by length of the answer"
REPLAY = "replay of a chunk by length of the answer"
STREAMS = "CPU a chunk by streams at once"
QUEUE = "CPU a job by jobs queued"
GROWTH = ", last over first"
#: The answers may be longer than the default bound.
_MAX_OUTPUT_BYTES = str(1024**3)
_REPLAYS = 5


@dataclass(frozen=True)
class Sizes:
    longest: int = 100_000
    #: Chunks of all answers of one length, at least.
    chunks: int = 20_000
    most_streams: int = 1_000
    #: Slow enough that also those of a single stream come one by one.
    chunks_per_s: float = 500.0
    window_s: float = 6.0
    most_queued: int = 100_000
    #: Jobs whose cost is measured.
    jobs: int = 1_000


def measure(sizes: Sizes) -> Run:
    run = Run()
    for length in _decades(100, sizes.longest):
        _length(run, sizes, length)
    for streams in _decades(1, sizes.most_streams):
        _streams(run, sizes, streams)
    for queued in _decades(100, sizes.most_queued):
        _queue(run, sizes, queued)
    for (name, _, _), line in run.curves.items():
        run.add(name + GROWTH, OURS, "times", line[max(line)] / line[min(line)])
    return run


def _decades(first: int, last: int) -> list[int]:
    found = [first]
    while found[-1] * 10 <= last:
        found.append(found[-1] * 10)
    return found


def _length(run: Run, sizes: Sizes, length: int) -> None:
    jobs = max(1, sizes.chunks // length)
    with Stack(concurrency=4, max_output_bytes=_MAX_OUTPUT_BYTES) as stack:
        worker = stack.worker()
        _spent(stack, worker, 4, 100)  # what is slow the first time
        one_chunk = _spent(stack, worker, max(20, jobs), 1)[0] / max(20, jobs)
        cpu, job_id = _spent(stack, worker, jobs, length)
        run.point(LENGTH, "chunks", "µs", length, (cpu - jobs * one_chunk) / (jobs * length) * 1e6)
        with Client(stack.server.url) as client:
            fastest = min(_replay(client, job_id) for _ in range(_REPLAYS))
        run.point(REPLAY, "chunks", "µs", length, fastest / length * 1e6)


def _spent(stack: Stack, worker: Child, jobs: int, length: int) -> tuple[float, str]:
    """CPU seconds for some jobs, and the id of one of them."""
    before, begun_s = stack.ended(), cpu_s(worker.pid)
    ids = stack.submit(jobs, length)
    stack.wait_ended(before + jobs)
    return cpu_s(worker.pid) - begun_s, ids[-1]


def _replay(client: Client, job_id: str) -> float:
    with clocked() as seconds:
        client.partial(job_id)
        return seconds()


def _streams(run: Run, sizes: Sizes, streams: int) -> None:
    per_s = sizes.chunks_per_s / streams
    with Stack(concurrency=streams, max_output_bytes=_MAX_OUTPUT_BYTES) as stack:
        worker = stack.worker()
        stack.submit(streams, chunks_for(sizes.window_s, streams, per_s), 1000 / per_s)
        run.point(STREAMS, "streams", "µs", streams, stack.cost_us(worker, streams, sizes.window_s))


def _queue(run: Run, sizes: Sizes, queued: int) -> None:
    with Stack(concurrency=10) as stack:
        stack.submit(queued, chunks=1)
        left = max(0, sizes.jobs - queued)
        worker = stack.worker()

        def ended_and_filled() -> int:
            nonlocal left
            room = min(left, queued - stack.queued())
            if room and (room == left or room > queued // 4):
                left -= len(stack.submit(room, chunks=1))
            return stack.ended()

        sample_until(1, stack.ended, "the first job", every_s=0.002)
        begun_s = cpu_s(worker.pid)
        samples = sample_until(sizes.jobs, ended_and_filled, f"{sizes.jobs} jobs", every_s=0.005)
        cost = (cpu_s(worker.pid) - begun_s) / (samples[-1][1] - samples[0][1])
        run.point(QUEUE, "jobs", "ms", queued, cost * 1e3)


BENCH = Bench(
    id="growth",
    question="Cost a chunk in long answers and among many streams, cost a job in a long queue",
    sizes=Sizes(),
    quick=Sizes(
        longest=1000, chunks=1000, most_streams=10, chunks_per_s=200.0, window_s=0.3, most_queued=1000, jobs=200
    ),
    measure=measure,
    targets=[Target(name + GROWTH, 1.25, "most") for name in (LENGTH, REPLAY, STREAMS, QUEUE)],
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
