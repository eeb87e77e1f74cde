"""`tokentape config show`: what is in force, where it came from, and nothing that is secret."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from tokentape.settings import Settings, Upstream

from .conftest import Run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokentape.toml"
    path.write_text(
        "lease_s = 7\n"
        "[upstreams.claude]\n"
        'dialect = "anthropic"\n'
        'api_key_env = "ANTHROPIC_API_KEY"\n'
        'headers = { "x-team" = "blue-secret" }\n'
    )
    return path


def test_each_setting_stands_there_with_its_value_and_source(run: Run, file: Path) -> None:
    outcome = run("config", "show", "--json", env={"TOKENTAPE_CONFIG": str(file), "TOKENTAPE_SWEEP_S": "2"})

    found = json.loads(outcome.out)
    assert outcome.code == 0
    assert found["file"] == str(file)
    assert set(found["settings"]) == set(Settings.model_fields) - {"upstreams"}
    assert set(found["upstreams"]["claude"]) == set(Upstream.model_fields)
    assert found["settings"]["lease_s"] == {"value": 7.0, "source": f"lease_s in {file}"}
    assert found["settings"]["sweep_s"] == {"value": 2.0, "source": "TOKENTAPE_SWEEP_S"}
    assert found["settings"]["hold_s"] == {"value": 3.0, "source": "the default"}
    assert found["upstreams"]["claude"]["api_key_env"]["value"] == "ANTHROPIC_API_KEY"
    assert found["upstreams"]["claude"]["models"]["source"] == "the default"


def test_no_secret_is_shown(run: Run, file: Path) -> None:
    password = secrets.token_hex(8)
    env = {"TOKENTAPE_CONFIG": str(file), "TOKENTAPE_REDIS_URL": f"redis://worker:{password}@127.0.0.1:1/0"}

    for options in ((), ("--json",)):
        outcome = run("config", "show", *options, env=env)

        assert outcome.code == 0
        assert "redis://worker:***@127.0.0.1:1/0" in outcome.out
        assert password not in outcome.out
        assert "x-team" in outcome.out
        assert "blue-secret" not in outcome.out


def test_the_table_has_a_line_for_each(run: Run, file: Path) -> None:
    outcome = run("config", "show", env={"TOKENTAPE_CONFIG": str(file)})

    lines = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert lines["lease_s"].split(maxsplit=1) == ["7", f"lease_s in {file}"]
    assert lines["upstreams.claude.dialect"].startswith("anthropic")
    assert lines["tape_url"].split() == ["-", "the", "default"]


def test_a_wrong_setting_is_an_error_in_one_line(run: Run) -> None:
    outcome = run("config", "show", env={"TOKENTAPE_LEASE": "3"})

    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: TOKENTAPE_LEASE: no such setting; did you mean TOKENTAPE_LEASE_S?\n"
