"""The two Dockerfiles: by a linter, and what can be known of them without an engine."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

FILES = [ROOT / "worker/Dockerfile", ROOT / "producer/Dockerfile"]
HADOLINT = Path(sys.executable).with_name("hadolint")


def named(file: Path) -> str:
    return file.parent.name


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, the rest) of each, with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", file.read_text()))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


@pytest.mark.skipif(not HADOLINT.exists(), reason="there is no hadolint for this machine")
@pytest.mark.parametrize("file", FILES, ids=named)
def test_the_linter_finds_nothing(file: Path) -> None:
    done = subprocess.run([HADOLINT, file], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not HADOLINT.exists(), reason="there is no hadolint for this machine")
def test_the_linter_finds_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python\nRUN cd /tmp && pip install redis\n")
    assert subprocess.run([HADOLINT, wrong], capture_output=True, check=False, timeout=60).returncode == 1


@pytest.mark.parametrize("file", FILES, ids=named)
def test_nobody_is_root(file: Path) -> None:
    final = instructions(file)
    last = max(number for number, (word, _) in enumerate(final) if word == "FROM")
    assert ("USER", "10001:10001") in final[last:]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=named)
def test_what_a_probe_imports_is_compiled_in_the_image(file: Path, tmp_path: Path) -> None:
    (compiles,) = [rest for word, rest in instructions(file) if word == "RUN" and "compileall" in rest]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPYCACHEPREFIX": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",  # as in the image: only what is asked for is written
    }

    subprocess.run(["sh", "-euc", compiles], env=environment, check=True, timeout=300)

    written = {path.name.split(".")[0] for path in tmp_path.rglob("*.pyc")}
    assert {"runpy", "decoder", "pathlib", "socket", "contextlib"} < written


@pytest.mark.parametrize("file", FILES, ids=named)
def test_everything_that_is_copied_is_there_and_not_ignored(file: Path) -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for word, rest in instructions(file):
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert source.split("/")[0] in let_in


@pytest.mark.parametrize("file", FILES, ids=named)
def test_probes_and_entry_points_are_ours(file: Path) -> None:
    found = dict(instructions(file))
    probe = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    if probe[0] == "tokentape":
        command = [sys.executable, "-P", "-m", "tokentape.cli", *probe[1:], "--help"]
        assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
    else:
        assert probe == ["python", "-P", "-m", "tokentape_worker.health", "live"]
    program, *arguments = json.loads(found["ENTRYPOINT"])
    assert program == "tokentape"
    # What stands behind the image's name is added to it.
    command = [sys.executable, "-P", "-m", "tokentape.cli", *arguments, "--help"]
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def test_the_workers_image_waits_for_the_server() -> None:
    found = dict(instructions(FILES[0]))
    assert json.loads(found["ENTRYPOINT"]) == ["tokentape", "worker", "--wait"]


@pytest.mark.parametrize("file", FILES, ids=named)
def test_each_package_of_an_image_has_the_version_that_the_tests_ran_with(file: Path) -> None:
    def pins(name: str) -> set[str]:
        text = (ROOT / f"requirements/{name}.txt").read_text()
        return {re.sub(r"\[.*\]", "", pin) for pin in re.findall(r"^(\S+==[^\s;]+)", text, re.MULTILINE)}

    ours = pins(named(file))
    assert ours
    assert ours < pins("dev")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)  # two environments, from the package index
@pytest.mark.parametrize(
    ("file", "runs", "lacks"),
    [(FILES[0], "worker", "rich"), (FILES[1], "batch", "aiohttp")],
    ids=["worker", "producer"],
)
def test_the_build_makes_an_environment_that_runs(file: Path, runs: str, lacks: str, tmp_path: Path) -> None:
    """The RUN lines of the first stage, word for word but for the folders, on this machine's Python."""
    source = tmp_path / "src"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "base"], check=True, timeout=100)
    environment = {"PATH": f"{tmp_path}/base/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    for word, rest in instructions(file):
        if word == "COPY" and not rest.startswith("--from"):
            *names, to = rest.split()
            for name in names:
                target = source / to / (Path(name).name if to.endswith("/") else "")
                target.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / name).is_dir():
                    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
                    shutil.copytree(ROOT / name, source / to, ignore=ignore)
                else:
                    shutil.copy(ROOT / name, target if to.endswith("/") else source / to)
        if word == "FROM" and source.exists():
            break
        if word == "RUN":
            line = rest.replace("/opt/tokentape", f"{tmp_path}/opt").replace("/wheels", f"{tmp_path}/wheels")
            subprocess.run(["sh", "-euc", line], cwd=source, env=environment, check=True, timeout=300)

    program = shlex.quote(str(tmp_path / "opt/bin/tokentape"))
    shown = subprocess.run(
        f"{program} {runs} --help", shell=True, capture_output=True, text=True, check=True, timeout=60
    )
    assert "Usage: tokentape" in shown.stdout
    missing = subprocess.run(
        [tmp_path / "opt/bin/python", "-c", f"import {lacks}"], capture_output=True, check=False, timeout=60
    )
    assert missing.returncode == 1
    assert not (tmp_path / "opt/bin/pip").exists()
