"""A million lines in 200 MB.

The jobs are not run here: what a run holds is the state of all lines, which the check fills, and one window of flights.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import BatchStack

LINES = 1_000_000
LIMIT_MB = 200


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_million_lines_and_a_window_of_flights_take_less_than_the_limit(stack: BatchStack, tmp_path: Path) -> None:
    probe = Path(__file__).with_name("memory_probe.py")

    done = subprocess.run(
        [sys.executable, "-P", str(probe), str(LINES), str(tmp_path)],
        env=stack.environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    (tmp_path / "in.jsonl").unlink()

    assert done.returncode == 0, done.stderr
    requests, peak_mb = map(int, done.stdout.split())
    assert requests == LINES
    assert peak_mb <= LIMIT_MB
