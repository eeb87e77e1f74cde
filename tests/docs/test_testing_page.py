"""The page about tests is tested: its files are a project of their own, whose tests pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokentape.script import FAULTS

from .conftest import DOCS, blocks, run_shell, titled

PAGE = DOCS / "how-to" / "test-your-application.md"
WITH_PLUGIN = "test_with_pytest_asyncio.py"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in titled(PAGE).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -q -p no:cacheprovider -W error\n")
    return tmp_path


@pytest.mark.long
def test_the_tests_of_the_page_pass_as_written_in_two_processes(project: Path) -> None:
    done = run_shell([f"python -m pytest -n 2 -p no:asyncio --ignore {WITH_PLUGIN}"], project)

    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_the_test_with_pytest_asyncio_passes_as_written(project: Path) -> None:
    scope = "-o asyncio_default_fixture_loop_scope=function"  # unset, it is a warning

    done = run_shell([f"python -m pytest {scope} {WITH_PLUGIN}"], project)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_program_without_pytest_runs_as_written(project: Path) -> None:
    done = run_shell(["python try_it.py"], project)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "It is Paris.\nIt is Paris.\n"


def test_every_python_block_is_a_file() -> None:
    assert set(titled(PAGE).values()) == set(blocks(PAGE, "python"))


def test_every_fault_of_the_simulator_is_in_the_table() -> None:
    rows = "\n".join(line for line in PAGE.read_text().splitlines() if line.startswith("| `"))

    assert [fault for fault in FAULTS if f"`{fault}`" not in rows] == []
