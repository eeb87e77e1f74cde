"""What a report makes of the values of several runs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks import harness, report, run
from benchmarks.harness import OURS, Bench, Run, Target


@dataclass(frozen=True)
class Sizes:
    jobs: int = 1


def reported(runs: list[Run], *targets: Target) -> dict[str, Any]:
    bench = Bench("T1", "what is asked", Sizes(), Sizes(), lambda _: Run(), targets)
    return harness.report(bench, Sizes(), runs)


def run_with(ours: float, rival: float | None = None, unit: str = "ms") -> Run:
    one = Run()
    one.add("delay", OURS, unit, ours)
    if rival is not None:
        one.add("delay", "rival", unit, rival)
    return one


def test_a_figure_is_the_median_with_the_lowest_and_the_highest() -> None:
    found = reported([run_with(3.0), run_with(1.0), run_with(8.0)])

    (figure,) = found["figures"]
    assert (figure["median"], figure["lowest"], figure["highest"]) == (3.0, 1.0, 8.0)
    assert figure["values"] == [3.0, 1.0, 8.0]


def test_a_ratio_is_taken_within_each_run() -> None:
    # The second run was on a machine three times slower; the medians of both sides would say 2 / 4.
    runs = [run_with(1.0, 4.0), run_with(3.0, 12.0), run_with(2.0, 2.0)]

    (target,) = reported(runs, Target("delay", 0.5, "most", "rival", "ratio"))["targets"]

    assert target["median"] == 0.25
    assert target["met"] is True


@pytest.mark.parametrize(
    ("target", "reached", "met"),
    [
        (Target("delay", 2.0, "most"), 3.0, False),
        (Target("delay", 2.0, "least"), 3.0, True),
        (Target("delay", 2.0, "most", "rival", "above"), 2.0, True),
        (Target("delay", 2.0, "least", "rival", "ratio"), 3.0, True),
    ],
)
def test_a_target_is_met_or_not(target: Target, reached: float, met: bool) -> None:
    (judged,) = reported([run_with(3.0, 1.0)], target)["targets"]

    assert (judged["median"], judged["met"]) == (reached, met)


def test_a_target_beside_a_rival_that_is_missing_is_not_measured() -> None:
    one = run_with(3.0)
    there = harness.installed(one, "rival", "no_such_package")

    found = reported([one], Target("delay", 0.5, "most", "rival", "ratio"))

    assert not there
    assert found["targets"][0]["met"] is None
    assert found["left_out"] == {"rival": "not installed: no_such_package"}
    assert "not measured" in report.as_text([found])
    assert report.losses([found]) == ["T1, delay: the target ≤ 0.5 times rival was not measured."]


@pytest.mark.parametrize(("unit", "loses"), [("ms", 3.0), ("/s", 0.5)])
def test_what_lost_is_said(unit: str, loses: float) -> None:
    lost, won = (reported([run_with(ours, 1.0, unit)]) for ours in (loses, 1 / loses))

    assert report.losses([lost]) == [f"T1, delay: ours is {loses:g} times that of rival."]
    assert report.losses([won])[0].startswith("Nothing")


def test_curves_have_their_points_in_order() -> None:
    runs = [Run(), Run()]
    for one, ys in zip(runs, ((2.0, 5.0), (4.0, 7.0)), strict=True):
        one.point("cost", "chunks", "µs", 1000, ys[1])
        one.point("cost", "chunks", "µs", 100, ys[0])

    (curve,) = reported(runs)["curves"]

    assert [(point["x"], point["median"]) for point in curve["points"]] == [(100, 3.0), (1000, 6.0)]


def test_figures_replace_those_that_stood_in_the_readme() -> None:
    results = {
        "command": "script/bench",
        "at": "2026-01-02T03:04:05Z",
        "machine": {"cores": 2, "processor": "P", "memory_gb": 8.0, "system": "Linux 6", "load_before": 0.1},
        "versions": {"python": "3.11"},
        "benchmarks": [reported([run_with(3.0, 1.0)], Target("delay", 5.0, "most"))],
    }
    readme = f"above\n{run.BEGIN}what was measured before\n{run.END}below\n"

    once = run.with_figures(readme, results)

    assert run.with_figures(once, results) == once
    assert "measured before" not in once
    assert "| T1 | delay | ≤ 5 ms | 3 | 3 | 3 | met |" in once
    assert once.startswith("above\n")
    assert once.endswith("below\n")


@pytest.mark.skipif(sys.platform != "linux", reason="read from Linux's kernel")
def test_cpu_counts_a_process_and_the_children_it_has_waited_for() -> None:
    burn = "import time\nuntil = time.process_time() + 0.3\nwhile time.process_time() < until: pass\n"
    waits = "print(flush=True); sys.stdin.read()"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); {waits}"
    command = [sys.executable, "-c", program]

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        spent = harness.cpu_s(process.pid)
        peak = harness.peak_rss_mb(process.pid)
        process.communicate()

    assert spent > 0.25  # children are counted in ticks of a hundredth
    assert peak > 1
