"""Every benchmark runs, at sizes that measure nothing, and yields what the reports are made of."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.run import BENCHMARKS

ROOT = Path(__file__).parents[2]


def quick(module: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{module}", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.benchmark
@pytest.mark.skipif(sys.platform != "linux", reason="CPU and memory are read from Linux's kernel")
@pytest.mark.parametrize("benchmark_id", BENCHMARKS)
def test_a_benchmark_yields_ours_its_rivals_and_its_targets(benchmark_id: str) -> None:
    report = quick(f"bench_{BENCHMARKS[benchmark_id]}")

    assert report["id"] == benchmark_id
    figures = report["figures"]
    assert "tokentape" in {figure["who"] for figure in figures}
    for figure in figures:
        assert len(figure["values"]) == report["runs"] == 1
        assert math.isfinite(figure["median"])
        assert figure["median"] > 0
        assert figure["unit"]
    missing = " ".join(report["left_out"])
    for target in report["targets"]:
        assert (target["met"] is None) == (target["against"] is not None and target["against"] in missing)
    for curve in report["curves"]:
        xs = [point["x"] for point in curve["points"]]
        assert len(xs) > 1
        assert xs == sorted(xs)


def test_every_script_is_among_those_that_are_run() -> None:
    scripts = {path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py")}

    assert scripts == set(BENCHMARKS.values())
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    assert {script for script in scripts if f"| `bench_{script}` |" not in readme} == set()
