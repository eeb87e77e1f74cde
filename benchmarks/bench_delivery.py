"""W3: how long is a chunk on its way from the upstream to somebody who follows the tape?

Upstream, worker, server and reader are four processes. The upstream writes into each chunk when it was written, the
reader subtracts. The floor is a reader that reads the upstream directly, on the same machine in the same run. The
rivals, which also keep a stream in Redis, get fewer streams: with as many as ours they fall behind without end.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from tokentape.child import Child, ChildFailed

from .harness import OURS, Bench, Run, Target, installed, main
from .stack import Stack

MEDIAN, WORST = "delay, median", "delay, 99 % below"
DIRECT = "read from the upstream"
RIVALS = (
    ("fastapi-resumable-stream", "resumable", "fastapi_resumable_stream"),
    ("assistant-stream", "assistant", "assistant_stream"),
)


@dataclass(frozen=True)
class Sizes:
    streams: int = 200
    rival_streams: int = 20
    chunks_per_s: float = 20.0
    window_s: float = 6.0
    #: Not counted, at the beginning.
    warm_s: float = 2.0

    @property
    def chunks(self) -> str:
        return str(int((self.window_s + self.warm_s) * self.chunks_per_s))

    @property
    def interval_ms(self) -> str:
        return str(1000 / self.chunks_per_s)

    @property
    def wait_s(self) -> float:
        """For a reader's last word."""
        return 60.0 + 3 * self.window_s


def measure(sizes: Sizes) -> Run:
    run = Run()
    _add(run, "", DIRECT, _directly(sizes, sizes.streams))
    _add(run, "", OURS, _through_tapes(sizes, sizes.streams))
    few = f", {sizes.rival_streams} streams"
    _add(run, few, OURS, _through_tapes(sizes, sizes.rival_streams))
    for who, program, module in RIVALS:
        if installed(run, who, module):
            try:
                _add(run, few, who, _through_rival(sizes, program))
            except ChildFailed as error:
                run.left_out[who] = str(error)
    return run


def _add(run: Run, which: str, who: str, found: dict[str, Any]) -> None:
    run.add(MEDIAN + which, who, "ms", found["p50_ms"])
    run.add(WORST + which, who, "ms", found["p99_ms"])


def _directly(sizes: Sizes, streams: int) -> dict[str, Any]:
    with Stack() as stack:
        reader = stack.program(
            "read-directly", stack.base_url, str(streams), sizes.chunks, sizes.interval_ms, str(sizes.warm_s)
        )
        return reader.wait_json(sizes.wait_s)


def _through_tapes(sizes: Sizes, streams: int) -> dict[str, Any]:
    with Stack(concurrency=streams) as stack:
        ids = stack.submit(streams, int(sizes.chunks), float(sizes.interval_ms))
        reader = stack.program("follow-tapes", stack.ids_file(ids), str(sizes.warm_s))
        stack.worker()
        return reader.wait_json(sizes.wait_s)


def _through_rival(sizes: Sizes, program: str) -> dict[str, Any]:
    with Stack() as stack:
        streams = str(sizes.rival_streams)
        reader = stack.program(f"read-{program}", streams, str(sizes.warm_s))  # waits for the streams to be there
        writer: Child = stack.program(f"write-{program}", stack.base_url, streams, sizes.chunks, sizes.interval_ms)
        found = reader.wait_json(sizes.wait_s)
        writer.check()
        return found


BENCH = Bench(
    id="W3",
    question="Delay from upstream to follower, 200 streams",
    sizes=Sizes(),
    quick=Sizes(streams=3, rival_streams=2, window_s=0.4, warm_s=0.1),
    measure=measure,
    targets=[Target(MEDIAN, 2.0, "most", DIRECT, "above"), Target(WORST, 10.0, "most", DIRECT, "above")],
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
