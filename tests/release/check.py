"""The check before a release: what was built is installed where nothing of the checkout is, and tried.

    script/release-check [--newest | --lowest] [--python 3.12 …]

For each Python and each of wheel and sdist: an environment with the base install alone, where the command answers and
names what it lacks; then with the extra `local`, where every module is imported, the demo runs, and of the wheel every
command of the README and the tutorial, in an empty home and an empty environment; then with `testing`. On the first
Python the wheel once more, with the lowest versions that pyproject.toml allows. Exit code 0 only where all is right.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.release.built import ROOT, Built, build

VERSIONS: Final = ("3.11", "3.12", "3.13")

INSTALL_S: Final = 900
RUN_S: Final = 180

#: What can be installed in one environment from what is published. `engine` is for one demo.
EXTRAS: Final = ("worker", "producer", "local", "testing")

_PLUGIN: Final = "tokentape.testing.plugin"


class Wrong(Exception):
    """A check failed; the message says which, and what was seen."""


def run(command: Sequence[str | Path], cwd: Path, env: dict[str, str] | None, deadline_s: float) -> str:
    """-> stdout. Raises Wrong for any other exit code than 0."""
    done = _done(command, cwd, env, deadline_s)
    if done.returncode:
        said = f"{done.stdout}{done.stderr}".strip()
        raise Wrong(f"exit code {done.returncode} of {' '.join(map(str, command))}\n{said}")
    return done.stdout


def _done(
    command: Sequence[str | Path], cwd: Path, env: dict[str, str] | None, deadline_s: float
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=deadline_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Wrong(f"no end within {deadline_s:.0f} s: {' '.join(map(str, command))}") from error


# ---- the interpreters


def interpreter(wanted: str) -> Path | None:
    """A Python of a version ("3.12") that runs, or the one at a path."""
    if "/" in wanted:
        return _real(Path(wanted), None)
    return next((found for path in _candidates(wanted) if (found := _real(path, wanted))), None)


def _candidates(version: str) -> Iterator[Path]:
    """Every one of that name on PATH: version managers put names there that fail when they are run. Then theirs."""
    for entry in os.environ.get("PATH", "").split(os.pathsep):
        yield Path(entry or ".") / f"python{version}"
    managed = (Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions", f"{version}.*")
    by_uv = (Path.home() / ".local/share/uv/python", f"cpython-{version}.*")
    for folder, pattern in (managed, by_uv):
        for one in sorted(folder.glob(pattern), reverse=True):
            yield one / "bin" / f"python{version}"


def _real(path: Path, version: str | None) -> Path | None:
    """The interpreter that a name leads to, outside of any environment; None where it does not run, or is another."""
    ask = (
        "import sys; print('%d.%d' % sys.version_info[:2], getattr(sys, '_base_executable', 0) or sys.executable)\n"
        "import venv, ensurepip"
    )
    try:
        done = subprocess.run([path, "-I", "-c", ask], capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return None
    said = re.fullmatch(r"(\d+\.\d+) (.+)\n", done.stdout)
    fits = done.returncode == 0 and said is not None and version in (None, said[1])
    return Path(said[2]) if fits and said else None


# ---- an environment


@dataclass
class Environment:
    """A fresh environment, and an empty home to work in."""

    folder: Path
    python: Path
    constraints: Path | None

    @classmethod
    def make(cls, folder: Path, interpreter_: Path, constraints: Path | None) -> Environment:
        (folder / "home").mkdir(parents=True)
        uv = shutil.which("uv")
        make: list[str | Path] = (
            [uv, "venv", "--quiet", "--python", interpreter_] if uv else [interpreter_, "-m", "venv"]
        )
        run([*make, folder / "venv"], folder, _without_python_settings(), INSTALL_S)
        return cls(folder, folder / "venv/bin/python", constraints)

    def install(self, requirement: str) -> None:
        uv = shutil.which("uv")
        pip: list[str | Path] = [uv, "pip", "install", "--quiet", "--python", self.python] if uv else [
            self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"
        ]  # fmt: skip
        limits: list[str | Path] = ["--constraint", self.constraints] if self.constraints else []
        run([*pip, *limits, requirement], self.folder, _without_python_settings(), INSTALL_S)

    def tokentape(self, *arguments: str | Path) -> str:
        return run([self.folder / "venv/bin/tokentape", *arguments], self.home, self._bare, RUN_S)

    def refused(self, *arguments: str) -> str:
        """-> stderr of a call that is to fail, in words and not in a traceback."""
        done = _done([self.folder / "venv/bin/tokentape", *arguments], self.home, self._bare, RUN_S)
        if not done.returncode or "Traceback" in done.stderr:
            raise Wrong(f"`tokentape {' '.join(arguments)}` is not refused in words:\n{done.stdout}{done.stderr}")
        return done.stderr

    def run_python(self, *arguments: str | Path) -> str:
        return run([self.python, "-I", *arguments], self.home, self._bare, RUN_S)

    def run_pages(self, *pages: str) -> None:
        """The blocks of pages as they stand, by the tests that also run them in the checkout."""
        bin_ = {"TOKENTAPE_TEST_BIN": str(self.folder / "venv/bin")}
        tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "as_written", *pages]
        run(tests, ROOT, {**os.environ, **bin_}, RUN_S)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def _bare(self) -> dict[str, str]:
        """An environment with no setting of ours, and nothing that leads to another Python."""
        return {"PATH": os.defpath, "HOME": str(self.home), "TMPDIR": str(self.folder), "LANG": "C.UTF-8"}


def _without_python_settings() -> dict[str, str]:
    """For installing: what leads to the registry stays, what leads to another environment goes."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "UV_SYSTEM_PYTHON")
    return {name: value for name, value in os.environ.items() if name not in ours}


# ---- the checks


def check(environment: Environment, artifact: Path, version: str) -> str:
    """-> what was seen, in a few words. Raises Wrong."""
    environment.install(str(artifact))
    if version not in environment.tokentape("--version").split():
        raise Wrong(f"`tokentape --version` does not say {version}")
    environment.tokentape("--help")
    environment.run_python("-c", "from tokentape import AsyncClient, Client, Settings; Settings.load({})")
    if "tokentape[local]" not in (said := environment.refused("demo")):
        raise Wrong(f"without the extra, `tokentape demo` does not name it:\n{said}")

    environment.install(f"tokentape[local] @ {artifact.as_uri()}")
    script = Path(__file__).with_name("installed.py")
    modules = environment.run_python(script, version, _PLUGIN).strip()
    for service in ("tokentape_worker", "tokentape_producer"):
        environment.run_python("-m", service, "--help")
    environment.tokentape("demo", "--out", environment.folder / "results.jsonl")
    answers = (environment.folder / "results.jsonl").read_text().count('"exact": true')
    if not answers:
        raise Wrong("the demo wrote no exact answer")

    if artifact.suffix == ".whl":
        environment.install("starlette")
        environment.install("uvicorn")
        environment.run_pages("tests/docs/test_readme.py", "tests/docs/test_tutorial.py")

    environment.install(f"tokentape[testing] @ {artifact.as_uri()}")
    environment.run_python("-c", f"import {_PLUGIN}")
    return f"{modules} modules, {answers} exact answers of the demo"


def check_lowest(environment: Environment, artifact: Path, version: str) -> str:
    """As check, but for everything at once, where the versions are what is in question."""
    environment.install(f"tokentape[testing] @ {artifact.as_uri()}")
    script = Path(__file__).with_name("installed.py")
    modules = environment.run_python(script, version).strip()
    environment.tokentape("demo", "--out", environment.folder / "results.jsonl")
    environment.run_pages("tests/docs/test_testing_page.py::test_the_program_without_pytest_runs_as_written")
    return f"{modules} modules, the demo and both stand-ins for tests, with the lowest versions"


def lowest_in(folder: Path) -> Path:
    """The lower bounds of pyproject.toml as constraints: each must be a release that is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"], *(one for extra in EXTRAS for one in extras[extra])}
    bounds = (re.match(r"([\w-]+)(?:\[.*?])?>=([\d.]+)", one) for one in sorted(wanted))
    path = folder / "lowest.txt"
    path.write_text("".join(f"{bound[1]}=={bound[2]}\n" for bound in bounds if bound))
    return path


def constraints_in(folder: Path) -> Path:
    """The locked versions, without their hashes: a file that was just built has none to go by."""
    locked = (ROOT / "requirements/dev.txt").read_text()
    pins = [line.removesuffix("\\").strip() for line in locked.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    kept = [re.sub(r"\[.*?\]", "", pin) for pin in pins]  # a constraint must not name extras
    path = folder / "constraints.txt"
    path.write_text("\n".join(kept) + "\n")
    return path


def keep(built: Built) -> None:
    """What passed becomes all that stands in dist/."""
    dist = ROOT / "dist"
    dist.mkdir(exist_ok=True)
    for old in dist.glob("tokentape-*"):
        old.unlink()
    for path in (built.wheel, built.sdist):
        shutil.copy(path, dist)


def say(text: str) -> None:
    print(f"release-check: {text}", flush=True)  # noqa: T201 - a program's own words


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="script/release-check", description=(__doc__ or "").partition("\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--newest", action="store_true", help="the newest dependencies, not the locked ones")
    which.add_argument("--lowest", action="store_true", help="the lowest ones alone")
    parser.add_argument("--python", action="append", metavar="3.x|PATH", help=f"default: {', '.join(VERSIONS)}")
    options = parser.parse_args(arguments)
    tried = 0
    with tempfile.TemporaryDirectory(prefix="tokentape-release-") as name:
        folder = Path(name)
        built = build(folder / "dist")
        say(f"built {built.wheel.name} and {built.sdist.name}")
        constraints = None if options.newest else constraints_in(folder)
        each = [] if options.lowest else [(check, artifact, constraints) for artifact in built]
        once = [] if options.newest else [(check_lowest, built.wheel, lowest_in(folder))]
        for wanted in options.python or VERSIONS:
            python = interpreter(wanted)
            if python is None:
                say(f"Python {wanted} is not installed; left out")
                if options.python:
                    return 1
                continue
            for look, artifact, versions in [*each, *once]:
                began = time.monotonic()
                place = folder / f"{tried}"
                try:
                    seen = look(Environment.make(place, python, versions), artifact, built.version)
                except Wrong as error:
                    say(f"WRONG on Python {wanted} from {artifact.name}: {error}")
                    return 1
                say(f"Python {wanted}, {artifact.name}: {seen} ({time.monotonic() - began:.0f} s)")
                shutil.rmtree(place)
                tried += 1
            once = []
        if not tried:
            say("no Python to try it on")
            return 1
        if each:
            keep(built)
            say(f"see dist/ ({built.version})")
    say("all right")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
