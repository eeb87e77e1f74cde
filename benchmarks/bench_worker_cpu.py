"""W1: what does a chunk cost the worker, beside what it costs openai-python only to read it?

Streams at an even pace, one chunk a packet. The worker reads, checks and publishes each; the rival, AsyncOpenAI, reads
and drops it. CPU is that of the process, while all streams are under way, over the chunks that the upstream wrote in
that time. `with opening and ending` is the worker's CPU for everything, from the first job to the last end.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from .harness import OURS, Bench, Run, Target, cpu_s, installed, main, peak_rss_mb
from .stack import Stack, chunks_for

COST = "CPU a chunk"
RIVAL = "openai-python, reading only"


@dataclass(frozen=True)
class Sizes:
    streams: int = 200
    chunks_per_s: float = 20.0
    #: How long is measured, in seconds.
    window_s: float = 6.0

    @property
    def chunks(self) -> int:
        return chunks_for(self.window_s, self.streams, self.chunks_per_s)


def measure(sizes: Sizes) -> Run:
    run = Run()
    _ours(run, sizes)
    if installed(run, RIVAL, "openai"):
        _rival(run, sizes)
    return run


def _ours(run: Run, sizes: Sizes) -> None:
    with Stack(concurrency=sizes.streams) as stack:
        worker = stack.worker()
        begun_s = cpu_s(worker.pid)
        stack.submit(sizes.streams, sizes.chunks, 1000 / sizes.chunks_per_s)
        run.add(COST, OURS, "µs", stack.cost_us(worker, sizes.streams, sizes.window_s))
        stack.wait_ended(sizes.streams)
        whole_us = (cpu_s(worker.pid) - begun_s) / stack.upstream()["chunks"] * 1e6
        run.add(f"{COST}, with opening and ending", OURS, "µs", whole_us)
        run.add("peak memory", OURS, "MB", peak_rss_mb(worker.pid))


def _rival(run: Run, sizes: Sizes) -> None:
    with Stack() as stack:
        arguments = (stack.base_url, str(sizes.streams), str(sizes.chunks), str(1000 / sizes.chunks_per_s))
        reader, _ = stack.rival("openai-reader", *arguments)
        run.add(COST, RIVAL, "µs", stack.cost_us(reader, sizes.streams, sizes.window_s))
        run.add("peak memory", RIVAL, "MB", peak_rss_mb(reader.pid))


BENCH = Bench(
    id="W1",
    question="CPU of the worker a chunk, 200 streams",
    sizes=Sizes(),
    quick=Sizes(streams=3, window_s=0.3),
    measure=measure,
    targets=[Target(COST, 45.0, "most"), Target(COST, 0.45, "most", RIVAL, "ratio")],
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
