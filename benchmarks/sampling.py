"""Where the time goes on the three hot paths: one text each in benchmarks/profiles/.

    script/profile [chunk] [job] [reader]

A sampling profiler (py-spy) watches the process from outside while it does what W1, W4 and W3 measure, and counts in
which function each sample found it. Only samples with the interpreter's lock count: waiting is not what is asked for.
`self` is time in the function itself, with what it calls in C: the kernel's share of a write stands in the function
that writes. `total` also has what it calls in Python.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from .harness import wait_for
from .stack import ROOT, Stack

FOLDER: Final = ROOT / "benchmarks" / "profiles"
_RATE: Final = 400
_SHOWN: Final = 40
_LINE: Final = re.compile(r":\d+\)$")


@contextmanager
def chunk(seconds: float) -> Iterator[int]:
    """W1's worker: 200 streams at 20 chunks a second."""
    with Stack(concurrency=200) as stack:
        worker = stack.worker()
        stack.submit(200, int(20 * (seconds + 15)), 50.0)
        wait_for(lambda: stack.upstream()["active"] == 200, "all streams to be under way")
        yield worker.pid


@contextmanager
def job(seconds: float) -> Iterator[int]:
    """W4's worker: a queue of answers of one chunk."""
    with Stack() as stack:
        stack.submit(int(2000 * (seconds + 5)), 1)
        worker = stack.worker()
        wait_for(lambda: stack.ended() > 0, "the first job")
        yield worker.pid


@contextmanager
def reader(seconds: float) -> Iterator[int]:
    """W3's reader: one process that follows 200 tapes."""
    with Stack(concurrency=200) as stack:
        ids = stack.submit(200, int(20 * (seconds + 15)), 50.0)
        follower = stack.program("follow-tapes", stack.ids_file(ids), "2")
        stack.worker()
        wait_for(lambda: stack.upstream()["active"] == 200, "all streams to be under way")
        yield follower.pid


PATHS: Final[dict[str, Callable[[float], AbstractContextManager[int]]]] = {"chunk": chunk, "job": job, "reader": reader}


def sample(pid: int, seconds: float) -> list[tuple[list[str], int]]:
    """Stacks of functions, the innermost last, and how many samples found the process in each."""
    with tempfile.TemporaryDirectory() as directory:
        raw = Path(directory) / "raw"
        spy = str(Path(sys.executable).with_name("py-spy"))
        how = ["--gil", "--format", "raw", "--rate", str(_RATE), "--duration", f"{seconds:.0f}"]
        command = [spy, "record", *how, "--pid", str(pid), "--output", str(raw)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"py-spy: {done.stderr.strip()}")
        lines = raw.read_text().splitlines()
    stacks = (line.rpartition(" ") for line in lines)
    return [([_LINE.sub(")", frame) for frame in frames.split(";")], int(count)) for frames, _, count in stacks]


def table(stacks: list[tuple[list[str], int]]) -> str:
    """The functions with the most time of their own."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for frames, count in stacks:
        own[frames[-1]] += count
        for frame in set(frames):
            total[frame] += count
    whole = sum(own.values())
    rows = [f"{whole:,} samples", "", " self  total  function"]
    rows += [f"{n / whole:5.1%} {total[frame] / whole:6.1%}  {frame}" for frame, n in own.most_common(_SHOWN)]
    return "\n".join(rows) + "\n"


def main() -> int:
    """Profile the paths that are named, or all."""
    parser = argparse.ArgumentParser(prog="script/profile", description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("path", nargs="*", choices=[[], *PATHS], help="chunk, job, reader; all unless named")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to watch each (default: 10)")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name in options.path or PATHS:
        path = PATHS[name]
        with path(options.seconds) as pid:
            time.sleep(1.0)  # what opening left behind
            text = table(sample(pid, options.seconds))
        about = f"{(path.__doc__ or '').strip()} Python {platform.python_version()}, script/profile {name}."
        (FOLDER / f"{name}.txt").write_text(f"{about}\n{text}", encoding="utf-8")
        sys.stdout.write(f"benchmarks/profiles/{name}.txt\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
