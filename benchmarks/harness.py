"""What every benchmark shares: its sizes and options, its figures and targets, and how a process is measured.

A benchmark is one module with a `Bench`: a question, the sizes of a full and of a quick run, and a function that
measures one run. `main` runs it as often as asked and makes a `Report` of what it yielded. A figure has one value for
each run; what is quoted is the median, with the lowest and the highest beside it. Rivals are measured in the same run,
one after the other, and ratios are taken within a run and then their median: the machine may be slower in one run than
in the next, but then it is so for both.

CPU is what the kernel counted for a process, its threads and its children (user and system); memory is the peak of its
resident set. Both are read from outside through Linux's process clocks and /proc, so that nothing in the process that
is measured does anything for it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

OURS: Final = "tokentape"
RUNS: Final = 5
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")

S = TypeVar("S")

#: What one run yields: (what is measured, who, unit) -> value.
Key = tuple[str, str, str]


@dataclass
class Run:
    """What one run of a benchmark yields."""

    values: dict[Key, float] = field(default_factory=dict)
    #: Curves: (name, unit of x, unit of y) -> x -> y.
    curves: dict[Key, dict[float, float]] = field(default_factory=dict)
    #: What could not be measured, and why: a rival that is not installed, or that failed.
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, who: str, unit: str, value: float) -> None:
        self.values[what, who, unit] = value

    def point(self, curve: str, x_unit: str, y_unit: str, x: float, y: float) -> None:
        self.curves.setdefault((curve, x_unit, y_unit), {})[x] = y


@dataclass(frozen=True)
class Target:
    """What has to be reached: the median of a figure, or of its ratio to a rival, or of how far it is above one."""

    what: str
    limit: float
    at: Literal["most", "least"]
    against: str | None = None
    how: Literal["value", "ratio", "above"] = "value"
    who: str = OURS


@dataclass(frozen=True)
class Bench(Generic[S]):
    """One benchmark. `sizes` are its full sizes, `quick` those that only show that it works."""

    id: str
    question: str
    sizes: S
    quick: S
    measure: Callable[[S], Run]
    targets: Sequence[Target] = ()


# ---- one process, measured from outside


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far: all its threads, to the nanosecond, and its children, to the clock tick."""
    # Linux: the clock of a process is the complement of its pid, shifted, and 2 for the scheduler's own count.
    own = time.clock_gettime((~pid << 3) | 2)
    waited_for = sum(map(int, _stat(pid)[13:15])) * _TICK_S
    return own + waited_for + sum(cpu_s_or_gone(child) for child in children(pid))


def cpu_s_or_gone(pid: int) -> float:
    try:
        return cpu_s(pid)
    except OSError:  # ended since it was listed; its parent has it in its own count by now
        return 0.0


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:  # a thread that has ended
            continue
    return found


def peak_rss_mb(pid: int) -> float:
    """The most memory that a process ever had resident, in MB (10^6 bytes)."""
    return _status_kb(pid, "VmHWM") * 1024 / 1e6


def shared_memory_mb(pid: int) -> float:
    """What a process and its children hold now, in MB; a page that several share is divided among them."""
    mine = next(
        int(line.split()[1])
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    )
    return mine * 1024 / 1e6 + sum(shared_memory_mb(child) for child in children(pid))


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold blanks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _status_kb(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# ---- little helpers of the benchmarks


def installed(run: Run, who: str, *modules: str) -> bool:
    """Whether a rival's packages are here; where not, the run says so."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        run.left_out[who] = f"not installed: {', '.join(missing)}"
    return not missing


def wait_for(condition: Callable[[], bool], what: str, wait_s: float = 120.0, every_s: float = 0.01) -> None:
    """Look until a condition holds. Raises TimeoutError."""
    give_up_at = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"waited {wait_s:g} s for {what}")
        time.sleep(every_s)


@contextmanager
def clocked() -> Iterator[Callable[[], float]]:
    """Seconds of the wall clock since the block began, garbage of what was before collected."""
    gc.collect()
    begun = time.perf_counter()
    yield lambda: time.perf_counter() - begun


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that is not below `share` of all; `ordered` is sorted."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# ---- reports


def report(bench: Bench[Any], size: Any, runs: Sequence[Run]) -> dict[str, Any]:
    """What all runs of a benchmark yielded, as JSON can hold it."""
    keys = {key: None for run in runs for key in run.values}
    curves = {key: None for run in runs for key in run.curves}
    return {
        "id": bench.id,
        "question": bench.question,
        "sizes": dataclasses.asdict(size),
        "runs": len(runs),
        "figures": [_figure(key, runs) for key in keys],
        "targets": [_judged(target, runs) for target in bench.targets],
        "curves": [_curve(key, [run.curves[key] for run in runs if key in run.curves]) for key in curves],
        "left_out": {who: why for run in runs for who, why in run.left_out.items()},
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def _figure(key: Key, runs: Sequence[Run]) -> dict[str, Any]:
    what, who, unit = key
    values = [run.values[key] for run in runs if key in run.values]
    ours = (what, OURS, unit)
    shares = [run.values[ours] / run.values[key] for run in runs if key in run.values and ours in run.values]
    return {
        "what": what,
        "who": who,
        "unit": unit,
        **_spread(values),
        "ours_over_it": None if who == OURS or not shares else statistics.median(shares),
        "values": values,
    }


def _curve(key: Key, lines: list[Mapping[float, float]]) -> dict[str, Any]:
    name, x_unit, y_unit = key
    points = [{"x": x, **_spread([line[x] for line in lines if x in line])} for x in sorted(lines[0])]
    return {"name": name, "x_unit": x_unit, "y_unit": y_unit, "points": points}


def _judged(target: Target, runs: Sequence[Run]) -> dict[str, Any]:
    reached = [value for run in runs if (value := _reached(target, run)) is not None]
    facts = {**dataclasses.asdict(target), "unit": _unit(target, runs)}
    if not reached:
        return {**facts, "median": None, "met": None}
    median = statistics.median(reached)
    return {
        **facts,
        **_spread(reached),
        "met": median <= target.limit if target.at == "most" else median >= target.limit,
    }


def _reached(target: Target, run: Run) -> float | None:
    """What one run says about a target; None where the rival was not measured."""
    by_who = {who: value for (what, who, _), value in run.values.items() if what == target.what}
    mine = by_who.get(target.who)
    if mine is None or target.how == "value":
        return mine
    other = by_who.get(target.against or "")
    if other is None:
        return None
    return mine - other if target.how == "above" else mine / other


def _unit(target: Target, runs: Sequence[Run]) -> str:
    if target.how == "ratio":
        return "times"
    return next((unit for run in runs for what, _, unit in run.values if what == target.what), "")


# ---- running one


def main(bench: Bench[Any]) -> int:
    """The command line of one benchmark."""
    options = _options(bench)
    size = bench.quick if options.quick else bench.sizes
    given = {name: value for name in dataclasses.asdict(size) if (value := getattr(options, name)) is not None}
    size = dataclasses.replace(size, **given)
    total = options.runs or (1 if options.quick else RUNS)
    runs: list[Run] = []
    for number in range(total):
        sys.stderr.write(f"{bench.id}: run {number + 1} of {total}\n")
        runs.append(bench.measure(size))
    found = report(bench, size, runs)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        from .report import as_text  # noqa: PLC0415  (only this way of telling needs it)

        sys.stdout.write(as_text([found]))
    return 0


def _options(bench: Bench[Any]) -> argparse.Namespace:
    module = sys.modules[bench.measure.__module__]
    name = (module.__spec__.name if module.__spec__ else "") or module.__name__
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, help=f"how often to measure [{RUNS}; with --quick 1]")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    for part in dataclasses.fields(bench.sizes):
        default = getattr(bench.sizes, part.name)
        flag = f"--{part.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), metavar=type(default).__name__, help=f"[{default}]")
    return parser.parse_args()
