"""The README stays true: its commands run as they stand, its tables say what the code says."""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from pathlib import Path

from tokentape import Settings
from tokentape.tape import KINDS

from . import conftest
from .conftest import ROOT, in_another_terminal, run_shell

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
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 24
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
