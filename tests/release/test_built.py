"""What is built holds the three packages and nothing else, and the version stands in one place."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import tokentape
from tests.release import built, check
from tokentape.cli import tokentape as command


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> built.Built:
    return built.build(tmp_path_factory.mktemp("dist"))


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(both: built.Built) -> None:
    assert built.wheel_names(both) == built.source_names()


def test_the_sdist_holds_what_the_wheel_is_built_from_and_tested_with(both: built.Built) -> None:
    names = built.sdist_names(both)

    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "script/setup", "requirements/dev.txt"} <= names
    assert {path.relative_to(built.ROOT).as_posix() for path in (built.ROOT / "tests").rglob("*.py")} <= names


def test_the_description_is_the_readme_without_what_leads_to_its_files(both: built.Built) -> None:
    readme = (built.ROOT / "README.md").read_text()
    description = built.wheel_metadata(both).split("\n\n", 1)[1]

    targets = re.findall(r"\]\((.*?)\)", description)

    assert [target for target in targets if not re.match(r"https?:", target)] == []
    assert re.findall(r"^## .*", description, re.MULTILINE) == re.findall(r"^## .*", readme, re.MULTILINE)
    assert "![" in readme
    assert "docs/settings.md has all" in description
    assert description.endswith("\nThe paths named here are those of the source distribution.\n")


@pytest.mark.parametrize("version", check.VERSIONS)
def test_the_metadata_names_every_python_that_is_checked(both: built.Built, version: str) -> None:
    assert f"\nClassifier: Programming Language :: Python :: {version}\n" in built.wheel_metadata(both)


def test_nothing_is_published_that_only_our_own_tests_need(both: built.Built) -> None:
    metadata = built.wheel_metadata(both)

    assert set(re.findall(r"^Provides-Extra: (.*)$", metadata, re.MULTILINE)) == {*check.EXTRAS, "engine"}
    assert "hypothesis" not in metadata.split("\n\n")[0]


def test_the_version_stands_in_one_place_and_is_said_everywhere(both: built.Built) -> None:
    said = CliRunner().invoke(command, ["--version"]).output
    written = re.compile(rf"""["']{re.escape(tokentape.__version__)}["']""")
    sources = [
        built.ROOT / "pyproject.toml",
        *(path for folder in built.PACKAGES.values() for path in folder.rglob("*.py")),
    ]

    assert both.version == tokentape.__version__
    assert f"\nVersion: {both.version}\n" in built.wheel_metadata(both)
    assert said.split()[-1] == both.version
    assert [path.name for path in sources if written.search(path.read_text())] == ["__init__.py"]


# ---- the check itself


def test_a_python_is_found_by_its_version_or_its_path() -> None:
    version = "{}.{}".format(*sys.version_info)

    by_version, by_path = check.interpreter(version), check.interpreter(sys.executable)

    for found in (by_version, by_path):
        assert found is not None
        ask = "import sys; print('%d.%d' % sys.version_info[:2], sys.prefix == sys.base_prefix)"
        said = subprocess.run([found, "-c", ask], stdout=subprocess.PIPE, text=True, check=True).stdout
        assert said == f"{version} True\n"


def test_a_name_that_fails_when_it_is_run_is_no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, line in (("3.98", "exit 127"), ("3.99", "echo 3.11 /usr/bin/python3")):
        fake = tmp_path / f"python{version}"
        fake.write_text(f"#!/bin/sh\n{line}\n")
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))

    assert [check.interpreter(version) for version in ("3.97", "3.98", "3.99")] == [None, None, None]


def test_a_wrong_exit_code_is_told_with_what_was_said(tmp_path: Path) -> None:
    with pytest.raises(check.Wrong, match=r"exit code 3 of .*\nout\nerr"):
        check.run(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], tmp_path, None, 60)


def test_locked_versions_are_taken_without_their_hashes(tmp_path: Path) -> None:
    lines = check.constraints_in(tmp_path).read_text().splitlines()

    assert any(line.startswith("redis==") for line in lines)
    assert [line for line in lines if "\\" in line or "sha256" in line] == []


def test_the_lowest_versions_are_those_of_the_project_and_of_every_extra(tmp_path: Path) -> None:
    project = tomllib.loads((built.ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for extra in check.EXTRAS for one in extras[extra])]
    names = {match[0] for one in wanted if (match := re.match(r"[\w-]+", one))} - {"tokentape"}

    lines = check.lowest_in(tmp_path).read_text().splitlines()

    assert {line.partition("==")[0] for line in lines} == names
    assert len(lines) == len(names), "a bound is another in another place"
    assert "hiredis==3.2" in lines


def test_a_module_from_elsewhere_is_not_what_was_installed() -> None:
    """Here the packages are imported from the checkout, which is what the check is to find."""
    script = Path(check.__file__).with_name("installed.py")

    done = subprocess.run(
        [sys.executable, "-P", script, tokentape.__version__], capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "which is not in" in done.stderr
