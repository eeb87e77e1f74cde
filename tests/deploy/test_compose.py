"""docker-compose.yml is valid, and is what docs/deployment.md says of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from tests.service.conftest import wait_until
from tokentape import Settings
from tokentape.embedded import bundled_binary

from .conftest import ROOT

FILE = ROOT / "docker-compose.yml"
OURS = ("worker", "producer", "simulator")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def seconds(duration: str) -> int:
    (number,) = re.findall(r"^(\d+)s$", duration)
    return int(number)


def test_it_is_valid_by_the_schema_of_compose() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_refuses_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(FILE.read_text().replace("stop_grace_period: 45s", "stop_grace_time: 45s"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(wrong)]
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 1


def test_workers_can_be_many(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    assert not {"container_name", "hostname", "ports"} & worker.keys()  # each of them is one container's alone
    assert "TOKENTAPE_WORKER_NAME" not in worker["environment"]
    assert seconds(worker["stop_grace_period"]) > worker["environment"]["TOKENTAPE_GRACE_S"]


@pytest.mark.parametrize("name", ["valkey", *OURS])
def test_containers_may_do_little(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("user") != "root"
    assert not service.get("privileged")


def test_no_secret_stands_in_the_file(compose: dict[str, Any]) -> None:
    assert {path["file"] for path in compose["secrets"].values()} == {
        "./secrets/redis_password",
        "./secrets/openai_api_key",
    }
    for name in OURS:
        for variable, value in compose["services"][name].get("environment", {}).items():
            assert not re.search("KEY|PASSWORD", variable) or str(value).startswith("/run/secrets/"), variable


@pytest.mark.parametrize("name", OURS)
def test_its_environment_is_one_that_the_settings_take(compose: dict[str, Any], name: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a-secret\n")
    environment = {
        variable: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", str(value)).replace("/run/secrets/redis_password", str(secret))
        for variable, value in compose["services"][name].get("environment", {}).items()
    }
    settings = Settings.load(environment)
    if environment:
        assert settings.redis_url == "redis://:a-secret@valkey:6379/0"


def test_the_commands_are_ours(compose: dict[str, Any]) -> None:
    program, *arguments = compose["services"]["simulator"]["entrypoint"]
    assert program == "tokentape"
    command = [sys.executable, "-P", "-m", "tokentape.cli", *arguments, "--help"]
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


@pytest.fixture
def server(compose: dict[str, Any], tmp_path: Path, server_binary: Path | None) -> Iterator[tuple[str, str]]:
    """The server as the file starts it, but for its folders, the port and how much it may take. -> URL, password"""
    binary = server_binary or bundled_binary()
    (tmp_path / "redis_password").write_text("a-password-of-the-test\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/valkey-server").symlink_to(binary)
    *shell, script = compose["services"]["valkey"]["command"]
    script = script.replace("$$", "$").replace("/run/secrets", str(tmp_path)).replace("/data", str(tmp_path))
    socket = tmp_path / "server.socket"
    script = script.replace("appendonly", f"port 0\nunixsocket {socket}\nappendonly", 1)
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "MAXMEMORY": "100mb"}
    process = subprocess.Popen([shutil.which(shell[0]) or "sh", *shell[1:], script], env=environment)
    try:
        wait_until(socket.exists)
        yield f"unix://{socket}", "a-password-of-the-test"
    finally:
        process.terminate()  # the shell has become the server
        assert process.wait(timeout=30) == 0


def test_the_server_keeps_everything_and_wants_the_password(server: tuple[str, str]) -> None:
    url, password = server
    with redis.Redis.from_url(url, password=password) as client:
        assert client.ping()
        assert client.config_get("appendonly", "appendfsync", "maxmemory-policy", "maxmemory") == {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "maxmemory": str(100 * 1024 * 1024),
        }
    with redis.Redis.from_url(url) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
