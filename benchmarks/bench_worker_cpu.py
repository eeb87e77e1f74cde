"""W1: what does a chunk cost the worker, beside what it costs openai-python only to read it?

Streams at an even pace, one chunk a packet. The worker reads, checks and publishes each; the rival, AsyncOpenAI, reads
and drops it. CPU is that of the process, while all streams are under way, over the chunks that the upstream wrote in
that time. `with opening and ending` is the worker's CPU for everything, from the first job to the last end.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from tokentape.child import Child

from .harness import OURS, Bench, Run, Target, cpu_s, installed, main, peak_rss_mb, wait_for
from .stack import Stack

COST = "CPU a chunk"
RIVAL = "openai-python, reading only"


@dataclass(frozen=True)
class Sizes:
    streams: int = 200
    chunks_per_s: float = 20.0
    #: How long is measured, in seconds.
    window_s: float = 6.0


def measure(sizes: Sizes) -> Run:
    run = Run()
    _ours(run, sizes)
    if installed(run, RIVAL, "openai"):
        _rival(run, sizes)
    return run


def _chunks(sizes: Sizes) -> int:
    """Of one stream: for the window, and for a little before and after it."""
    return int(sizes.chunks_per_s * (sizes.window_s + 1.0)) + int(sizes.streams / 50) + 5


def _ours(run: Run, sizes: Sizes) -> None:
    with Stack(concurrency=sizes.streams) as stack:
        worker = stack.worker()
        begun_s = cpu_s(worker.pid)
        stack.submit(sizes.streams, _chunks(sizes), 1000 / sizes.chunks_per_s)
        run.add(COST, OURS, "µs", _in_window(stack, worker, sizes))
        stack.wait_ended(sizes.streams)
        whole_us = (cpu_s(worker.pid) - begun_s) / stack.upstream()["chunks"] * 1e6
        run.add(f"{COST}, with opening and ending", OURS, "µs", whole_us)
        run.add("peak memory", OURS, "MB", peak_rss_mb(worker.pid))


def _rival(run: Run, sizes: Sizes) -> None:
    with Stack() as stack:
        arguments = (stack.base_url, str(sizes.streams), str(_chunks(sizes)), str(1000 / sizes.chunks_per_s))
        reader, _ = stack.rival("openai-reader", *arguments)
        run.add(COST, RIVAL, "µs", _in_window(stack, reader, sizes))
        run.add("peak memory", RIVAL, "MB", peak_rss_mb(reader.pid))


def _in_window(stack: Stack, reader: Child, sizes: Sizes) -> float:
    """Microseconds of CPU a chunk, while all streams are under way."""
    wait_for(lambda: stack.upstream()["active"] == sizes.streams, "all streams to be under way")
    time.sleep(0.5)  # what opening left behind
    cpu, chunks = cpu_s(reader.pid), stack.upstream()["chunks"]
    time.sleep(sizes.window_s)
    cpu, stats = cpu_s(reader.pid) - cpu, stack.upstream()
    if stats["active"] < sizes.streams:
        raise RuntimeError("streams ended while they were measured: this machine is too slow for these sizes")
    return cpu / (stats["chunks"] - chunks) * 1e6


BENCH = Bench(
    id="W1",
    question="CPU of the worker a chunk, 200 streams at 20 chunks a second",
    sizes=Sizes(),
    quick=Sizes(streams=3, window_s=0.3),
    measure=measure,
    targets=[Target(COST, 45.0, "most"), Target(COST, 0.45, "most", RIVAL, "ratio")],
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
