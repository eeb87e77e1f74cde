"""W9: how much of the server's memory does a chunk take?

A long answer, written by a worker as it comes; then the server's own count of the tape's memory, over the bytes of the
chunks' JSON. `all that the job leaves` is how much the server's memory has grown by the job: result, request and RQ's
record included.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, cast

from tokentape.tape import Tape

from .harness import OURS, Bench, Run, Target, main
from .stack import Stack

SHARE = "memory over the JSON's bytes"


@dataclass(frozen=True)
class Sizes:
    chunks: int = 20_000


def measure(sizes: Sizes) -> Run:
    run = Run()
    with Stack() as stack:
        stack.worker()
        stack.submit(1, chunks=20)  # the scripts, the books: what is there anyway
        stack.wait_ended(1)
        before = _used(stack)
        (job_id,) = stack.submit(1, sizes.chunks)
        stack.wait_ended(2)
        grown = _used(stack) - before
        key = Tape("tokentape", job_id).key
        chunks = [fields[b"data"] for _, fields in _rows(stack, key) if fields[b"kind"] == b"chunk"]
        tape = int(cast("int", stack.redis.execute_command("MEMORY", "USAGE", key, "SAMPLES", 0)))
    bytes_of_json = sum(map(len, chunks))
    run.add(SHARE, OURS, "times", tape / bytes_of_json)
    run.add("all that the job leaves over the JSON's bytes", OURS, "times", grown / bytes_of_json)
    run.add("JSON a chunk", OURS, "bytes", bytes_of_json / len(chunks))
    run.add("memory a chunk", OURS, "bytes", tape / len(chunks))
    return run


def _used(stack: Stack) -> int:
    return int(cast("dict[str, Any]", stack.redis.info("memory"))["used_memory"])


def _rows(stack: Stack, key: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return cast("list[tuple[bytes, dict[bytes, bytes]]]", stack.redis.xrange(key))


BENCH = Bench(
    id="W9",
    question="The server's memory for a chunk of a long answer",
    sizes=Sizes(),
    quick=Sizes(chunks=200),
    measure=measure,
    targets=[Target(SHARE, 1.12, "most")],
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
