"""The examples hold for the type checkers that applications use, with no configuration of ours, and they run.

Both checkers see copies outside the checkout, and the package as it is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import tokentape
from tests.typing import examples
from tokentape.embedded import EmbeddedServer
from tokentape.testing import Stack

#: pyright as PyPI has it whole; the package of that name fetches most of itself when it is first run.
pyright = pytest.mark.skipif(find_spec("basedpyright") is None, reason="needs script/setup --types")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("examples.py", "mistakes.py"):
        shutil.copy(Path(__file__).with_name(name), tmp_path)
    return tmp_path


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    # The environment's own `python` first: that is where pyright looks for installed packages.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path}
    return subprocess.run(
        [sys.executable, "-P", "-m", *command], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )


def test_strict_mypy_finds_every_mistake_and_nothing_else(folder: Path) -> None:
    (folder / "mypy.ini").write_text("[mypy]\nstrict = true\n")

    run = _run(folder, "mypy", "examples.py", "mistakes.py")

    assert run.returncode == 0, run.stdout + run.stderr


@pyright
def test_strict_pyright_finds_every_mistake_and_nothing_else(folder: Path) -> None:
    config = {
        "typeCheckingMode": "strict",
        "include": ["examples.py", "mistakes.py"],
        "enableTypeIgnoreComments": False,
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(config))

    run = _run(folder, "basedpyright")

    assert run.returncode == 0, run.stdout + run.stderr


@pyright
def test_the_type_of_every_public_name_is_written_down(tmp_path: Path) -> None:
    run = _run(tmp_path, "basedpyright", "--verifytypes", "tokentape", "--ignoreexternal", "--outputjson")
    symbols: list[dict[str, Any]] = json.loads(run.stdout)["typeCompleteness"]["symbols"]
    public = {f"{getattr(tokentape, name).__module__}.{name}" for name in tokentape.__all__} | {"tokentape.testing"}

    mine = [symbol for symbol in symbols if any(f"{symbol['name']}.".startswith(f"{name}.") for name in public)]

    assert public <= {symbol["name"] for symbol in mine} | {"tokentape.testing"}
    assert len(mine) > 300
    assert [symbol["name"] for symbol in mine if not symbol["isTypeKnown"]] == []


# ---- they run


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as running:
        yield running


@pytest.fixture
def stack(server: EmbeddedServer) -> Iterator[Stack]:
    with Stack(server=server) as running:
        running.script(text="Paris, of course")
        yield running


def test_the_examples_run(stack: Stack) -> None:
    client = stack.client()

    assert examples.blocking(client) == "Paris, of course"
    assert examples.many(client) == ["Paris, of course"] * 2
    job = client.submit(model="m", messages=examples.HELLO)
    assert examples.told_by_kind(client, job.id) == "Paris, of course"
    assert examples.folded(client, job.id) == job.result()
    assert examples.restarts(client, job.id) == ("Paris, of course", [])
    assert examples.errors(client, job.id) == "Paris, of course"
    assert "job_" in examples.errors(client, f"job_{'0' * 32}")


async def test_the_asyncio_examples_run(stack: Stack) -> None:
    async with stack.async_client() as client:
        assert await examples.with_asyncio(client) == "Paris, of course"
        assert await examples.many_with_asyncio(client) == ["Paris, of course"] * 2


async def test_the_examples_of_clients_and_of_tests_run(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENTAPE_REDIS_URL", server.url)

    port = urlsplit(server.url).port or 0

    assert examples.clients(server.url, port) == [server.url] * 3
    assert await examples.clients_with_asyncio(server.url, port) == [server.url] * 2
    assert examples.in_tests() == "Paris"
