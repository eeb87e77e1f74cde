"""W5: how long is a chunk on its way to 100 readers of one tape in one process?

One process writes a tape, one chunk at a time, and says in each when. Another has 100 followers of it: with us they
share one blocking read; the rival is what one writes first, a connection and a blocking XREAD for each.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tokentape.tape import Tape

from .harness import OURS, Bench, Run, Target, main
from .stack import Stack

MEDIAN, WORST = "delay, median", "delay, 99 % below"
APART = "one XREAD a reader"


@dataclass(frozen=True)
class Sizes:
    readers: int = 100
    chunks_per_s: float = 50.0
    window_s: float = 5.0
    #: Not counted, at the beginning.
    warm_s: float = 0.5


def measure(sizes: Sizes) -> Run:
    run = Run()
    _one(run, OURS, sizes)
    _one(run, APART, sizes)
    return run


def _one(run: Run, who: str, sizes: Sizes) -> None:
    with Stack() as stack:
        (job_id,) = stack.submit(1, chunks=1)  # no worker runs: the writer claims it
        if who == OURS:
            reader = stack.program("follow-tapes", stack.ids_file([job_id] * sizes.readers), str(sizes.warm_s))
        else:
            key = Tape("tokentape", job_id).key
            reader = stack.program("read-apart", key, str(sizes.readers), str(sizes.warm_s))
        chunks = int(sizes.chunks_per_s * (sizes.window_s + sizes.warm_s))
        stack.program("write-tape", job_id, str(chunks), str(1000 / sizes.chunks_per_s))
        found = reader.wait_json(60.0 + 3 * sizes.window_s)
    run.add(MEDIAN, who, "ms", found["p50_ms"])
    run.add(WORST, who, "ms", found["p99_ms"])


BENCH = Bench(
    id="W5",
    question="Delay to 100 readers of one tape in one process",
    sizes=Sizes(),
    quick=Sizes(readers=3, window_s=0.3, warm_s=0.1),
    measure=measure,
    targets=[Target(MEDIAN, 2.0, "most"), Target(WORST, 5.0, "most")],
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
