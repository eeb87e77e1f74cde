"""The README stays true: its commands run as they stand, its tables say what the code says."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from tokentape import Settings, exit_codes
from tokentape.cli import tokentape
from tokentape.tape import KINDS

from . import conftest
from .conftest import ROOT, Environment, in_another_terminal, run_shell

PAGE = ROOT / "README.md"
README = PAGE.read_text()


def blocks(language: str) -> list[str]:
    return conftest.blocks(PAGE, language)


def test_the_scripts_are_there_and_run_in_ci() -> None:
    continuous = (ROOT / ".ci" / "run").read_text()

    for script in ("script/demo", "script/test"):
        assert f"{script}\n" in blocks("sh")
        assert os.access(ROOT / script, os.X_OK)
        assert script in continuous


def test_every_extra_that_is_installed_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (install,) = [block for block in blocks("sh") if "pip install" in block]

    wanted = re.findall(r"pip install '?tokentape(?:\[(\w+)])?", install)

    assert len(wanted) == install.count("pip install")
    assert {extra for extra in wanted if extra} <= set(project["optional-dependencies"])


def test_the_picture_of_the_demo_has_as_many_answers_as_is_said() -> None:
    picture = (ROOT / "docs" / "demo.svg").read_text().replace("&#160;", " ")

    assert "(sixteen in the picture)" in README
    assert "sixteen answers" in (ROOT / "docs" / "index.md").read_text()
    assert "answers  16 of 16" in picture


def test_how_to_install_what_is_not_released_is_said_until_it_is() -> None:
    released = re.search(r"^## \[\d", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    pages = [README, (ROOT / "docs" / "tutorial.md").read_text()]

    said = ["`pip install '.[local]'`" in page for page in pages]

    assert said == [not released, not released]


def test_the_commands_and_the_python_example_run_as_written(tmp_path: Path) -> None:
    commands = [block for block in blocks("sh") if "tokentape " in block and "pip " not in block]
    redis_cli = [block for block in blocks("sh") if "redis-cli" in block]
    (example,) = blocks("python")
    (tmp_path / "example.py").write_text(example)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    last = redis_cli if shutil.which("redis-cli") else []
    told = ". ./up.out"  # the line that `up` prints for applications

    done = run_shell([*map(in_another_terminal, commands), told, "python example.py", *last], tmp_path)

    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 24
    assert "stop" in done.stdout
    assert '"kind":"end"' in done.stdout.replace(" ", "")


def test_the_table_of_settings_is_complete_and_right() -> None:
    rows = dict(re.findall(r"^\| `TOKENTAPE_(\w+)` \| (.*?) \|", README, re.MULTILINE))
    fields = {name.upper(): field for name, field in Settings.model_fields.items() if name != "upstreams"}

    assert set(rows) == set(fields)
    for name, shown in rows.items():
        default = fields[name].default
        if isinstance(default, float):
            assert float(shown) == default, name
        elif default is not None:
            assert shown.strip("`") == str(default), name


def test_the_exit_codes_are_those_of_the_reference_and_of_the_code() -> None:
    reference = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    (sentence,) = re.findall(r"Exit codes:(.*?)\.", README, re.DOTALL)
    named = {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}

    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", reference, re.MULTILINE)]

    assert listed == [int(code) for code in re.findall(r"(?:^|,)\s(\d+) ", sentence)]
    assert set(listed) == named | {0, 128 + signal.SIGTERM}


def test_every_command_but_completion_takes_json() -> None:
    context = click.Context(tokentape)
    commands = {name: tokentape.get_command(context, name) for name in tokentape.list_commands(context)}
    without = {
        name
        for name, command in commands.items()
        if command is not None
        and not isinstance(command, click.Group)
        and not any("--json" in option.opts for option in command.params)
    }

    assert without == {"completion"}


@pytest.mark.parametrize("command", ["worker", "simulate --port 0", "up"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_service_that_is_stopped_ends_as_the_readme_says(
    service: Environment, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    environment = {**service, "TOKENTAPE_LOG_LEVEL": "info", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    if command == "up":
        environment = {name: value for name, value in environment.items() if not name.startswith("TOKENTAPE_")}
    program = Path(sys.executable).with_name("tokentape")
    running = subprocess.Popen(
        [program, *command.split()], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert running.stdout
    for line in running.stdout:
        if "ready" in line or "http://" in line:
            break
    running.send_signal(number)
    running.communicate(timeout=60)

    by_either = re.findall(r"`(\w+)`", README.split("143 ended by SIGTERM.")[1].split(" by either")[0])
    stops = command.split(maxsplit=1)[0] in by_either or number == signal.SIGTERM
    assert running.returncode == (0 if stops else 130)


def test_the_first_example_of_an_upstream_is_the_defaults_and_the_others_are_read() -> None:
    (example,) = blocks("toml")

    settings = Settings.model_validate(tomllib.loads(example))
    plain = Settings.model_validate({"upstreams": {"default": {"api_key_env": "OPENAI_API_KEY"}}})

    assert settings.upstreams["default"] == plain.upstreams["default"]
    assert {name: one.dialect for name, one in settings.upstreams.items()} == {
        "default": "openai",
        "claude": "anthropic",
        "azure": "openai",
    }


def test_the_table_of_the_tape_names_every_kind() -> None:
    (section,) = re.findall(r"^## The tape.*?^## ", README, re.DOTALL | re.MULTILINE)

    assert all(f"`{kind}`" in section for kind in KINDS)
