"""The tutorial works: its blocks run as they stand, in their order, in one shell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import DOCS, blocks, in_another_terminal, run_shell, titled

PAGE = DOCS / "tutorial.md"


@pytest.mark.long
def test_the_tutorial_runs_as_written(tmp_path: Path) -> None:
    for name, text in titled(PAGE).items():
        (tmp_path / name).write_text(text)
    commands = [in_another_terminal(block) for block in blocks(PAGE, "sh") if "pip install" not in block]

    done = run_shell(commands, tmp_path, ports=["6379", "9000", "8000"])

    assert done.returncode == 0, done.stderr
    assert "exact answers  24 of 24" in done.stdout
    assert re.search(r"^warning +redis_url persistence +no append-only file$", done.stdout, re.MULTILINE)
    assert "none: nothing runs until one is started" in done.stdout
    assert "attempt 2 starts over (worker_lost)" in done.stderr
    assert done.stdout.count("\nstop ") == 2, "chat.py was run twice"
    whole, rest = done.stdout.split("id: 0-1\nevent: queued\n")[1].split("event: end\n")[:2]
    assert "id: 1-15\n" in whole
    assert re.findall(r"^id: (.*)$", rest, re.MULTILINE)[0] == "1-16"


def test_every_python_block_is_a_file_of_the_tutorial() -> None:
    assert set(titled(PAGE).values()) == set(blocks(PAGE, "python"))
