"""The unit for workers: systemd's own check, and what it must agree on with the code."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from tokentape import Settings
from tokentape_worker.health import EVERY_S

from .conftest import ROOT

UNIT = ROOT / "deploy/systemd/tokentape-worker@.service"
ENVIRONMENT = ROOT / "deploy/systemd/worker.env"


def parsed() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)  # a name may stand in more than one line
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    unit = tmp_path / "tokentape-worker@1.service"
    unit.write_text(UNIT.read_text().replace("/opt/tokentape/bin/tokentape", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", unit],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "tokentape" in line]
    assert said == []


def test_stopping_takes_longer_than_the_grace() -> None:
    settings = Settings.load(
        dict(line.split("=", 1) for line in ENVIRONMENT.read_text().splitlines() if line and not line.startswith("#"))
    )
    assert parsed().getint("Service", "TimeoutStopSec") > settings.grace_s


def test_the_watchdog_is_told_often_enough() -> None:
    assert parsed().getint("Service", "WatchdogSec") > 2 * EVERY_S
    assert parsed().get("Service", "Type") == "notify"


def test_no_secret_stands_in_the_files() -> None:
    text = UNIT.read_text() + ENVIRONMENT.read_text()
    assert "LoadCredential=redis_password:" in text
    assert "TOKENTAPE_REDIS_PASSWORD_FILE=%d/redis_password" in text
    assert "OPENAI_API_KEY=" not in text
