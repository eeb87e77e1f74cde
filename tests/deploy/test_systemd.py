"""The unit for workers: systemd's own check, and what it must agree on with the code."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tokentape import Settings
from tokentape_worker.health import EVERY_S

from .conftest import ROOT

DOCS = ROOT / "docs/deployment.md"
UNIT = ROOT / "deploy/systemd/tokentape-worker@.service"
ENVIRONMENT = ROOT / "deploy/systemd/worker.env"


def parsed() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)  # a name may stand in more than one line
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser


def verified(unit: str, folder: Path, drop_in: str = "") -> list[str]:
    """What systemd says of the unit, and of what `systemctl edit` adds to it."""
    file = folder / "tokentape-worker@1.service"
    file.write_text(unit.replace("/opt/tokentape/bin/tokentape", "/bin/true"))
    (folder / f"{file.name}.d").mkdir()
    (folder / f"{file.name}.d/override.conf").write_text(drop_in)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", file],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
    )  # fmt: skip
    return [line for line in done.stderr.splitlines() if "tokentape" in line]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    assert verified(UNIT.read_text(), tmp_path) == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_understands_what_the_docs_add(tmp_path: Path) -> None:
    (added,) = re.findall(r"^```ini\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    assert verified(UNIT.read_text(), tmp_path, added) == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_finds_what_is_wrong(tmp_path: Path) -> None:
    assert verified(UNIT.read_text(), tmp_path, "[Service]\nWorkingDirectories=%d\n")


def test_the_keys_of_the_docs_are_among_the_credentials() -> None:
    page = DOCS.read_text()
    (added,) = re.findall(r"^```ini\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (example,) = re.findall(
        r"^```toml\n(.*?)^```", page.split("## Kubernetes")[0].split("## systemd")[1], re.DOTALL | re.MULTILINE
    )
    credentials = set(re.findall(r"^LoadCredential=(\w+):", added, re.MULTILINE))

    settings = Settings.model_validate(tomllib.loads(example))

    assert {str(upstream.api_key_file) for upstream in settings.upstreams.values()} < credentials
    assert "redis_password" in credentials


def test_the_steps_of_the_docs_install_what_is_readable_by_whom_it_is_for(tmp_path: Path) -> None:
    """Both blocks, word for word but for the folders and the group, which this machine may not have."""
    section = DOCS.read_text().split("## systemd")[1].split("## Kubernetes")[0]
    blocks = re.findall(r"^```\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    etc, programs = tmp_path / "etc", tmp_path / "bin"
    for folder in (
        etc / "redis",
        etc / "systemd/system",
        programs,
        tmp_path / "passwords",
        tmp_path / "opt/tokentape/bin",
    ):
        folder.mkdir(parents=True)
    for name in ("bin/systemctl", "bin/journalctl", "bin/python3", "opt/tokentape/bin/pip"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{Path(name).name} $*" >>{tmp_path}/ran\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / "users.acl").write_text("user default\n")
    (tmp_path / "passwords/tokentape-worker").write_text("a-password\n")
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    script = "".join(blocks).replace(' -g "$server"', "").replace("/opt/", f"{tmp_path}/opt/")
    script = "umask 077\n" + script.replace("/etc/", f"{etc}/")

    subprocess.run(
        ["sh", "-euc", script], cwd=tmp_path, env={"PATH": f"{programs}:/usr/bin:/bin"}, check=True, timeout=60
    )

    modes = {str(file.relative_to(etc)): file.stat().st_mode & 0o777 for file in etc.rglob("*")}
    assert {name: modes[name] for name in modes if name.startswith(("tokentape", "systemd/system/"))} == {
        "tokentape": 0o755,
        "tokentape/tokentape.conf": 0o644,
        "tokentape/users.acl": 0o640,
        "tokentape/redis_password": 0o600,
        "tokentape/openai_api_key": 0o600,
        "tokentape/worker.env": 0o644,
        "systemd/system/tokentape-worker@.service": 0o644,
    }
    assert (etc / "tokentape/openai_api_key").read_text() == "none"
    loaded = re.findall(r"^LoadCredential=\w+:/etc/(.*)$", UNIT.read_text(), re.MULTILINE)
    assert {modes[name] for name in loaded} == {0o600}
    assert (etc / "redis/redis.conf").read_text() == f"include {etc}/tokentape/tokentape.conf\n"
    assert "systemctl restart redis-server\n" in (tmp_path / "ran").read_text()


def test_stopping_takes_longer_than_the_grace_and_a_lease() -> None:
    settings = Settings.load(
        dict(line.split("=", 1) for line in ENVIRONMENT.read_text().splitlines() if line and not line.startswith("#"))
    )
    assert parsed().getint("Service", "TimeoutStopSec") >= settings.grace_s + settings.lease_s + 5


def test_starting_waits_for_the_server() -> None:
    program, *arguments = parsed().get("Service", "ExecStart").split()
    assert parsed().get("Service", "TimeoutStartSec") == "infinity"
    assert arguments == ["worker", "--wait"]
    command = [sys.executable, "-P", "-m", "tokentape.cli", *arguments, "--help"]
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
    assert program == "/opt/tokentape/bin/tokentape"


def test_the_watchdog_is_told_often_enough() -> None:
    assert parsed().getint("Service", "WatchdogSec") > 2 * EVERY_S
    assert parsed().get("Service", "Type") == "notify"


def test_no_secret_stands_in_the_files() -> None:
    text = UNIT.read_text() + ENVIRONMENT.read_text()
    assert "LoadCredential=redis_password:" in text
    assert "TOKENTAPE_REDIS_PASSWORD_FILE=%d/redis_password" in text
    assert "OPENAI_API_KEY=" not in text
    assert parsed().get("Service", "LimitCORE") == "0"  # nor in a core dump
