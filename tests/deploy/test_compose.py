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

from .conftest import ROOT, answers

FILE = ROOT / "docker-compose.yml"
DOCS = ROOT / "docs/deployment.md"
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


def test_the_example_of_an_override_is_valid_and_fits_the_file(compose: dict[str, Any], tmp_path: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    override = tmp_path / "docker-compose.override.yml"
    override.write_text(example)
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(override)]
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0

    loaded = yaml.safe_load(example)
    assert set(loaded["services"]) < set(compose["services"])
    worker = loaded["services"]["worker"]
    assert worker["volumes"] == [f"./tokentape.toml:{worker['environment']['TOKENTAPE_CONFIG']}:ro"]
    assert set(worker["secrets"]) == set(loaded["secrets"])
    assert all(f'"/run/secrets/{name}"' in DOCS.read_text() for name in worker["secrets"])


def test_the_schema_refuses_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(FILE.read_text().replace("stop_grace_period: 45s", "stop_grace_time: 45s"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(wrong)]
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 1


def test_workers_can_be_many(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    assert not {"container_name", "hostname", "ports"} & worker.keys()  # each of them is one container's alone
    assert "TOKENTAPE_WORKER_NAME" not in worker["environment"]
    assert worker["scale"] == "${WORKERS:-1}"
    settings = Settings.load({"TOKENTAPE_GRACE_S": str(worker["environment"]["TOKENTAPE_GRACE_S"])})
    assert seconds(worker["stop_grace_period"]) >= settings.grace_s + settings.lease_s + 5


def test_how_long_tapes_stay_is_the_same_for_all_who_write(compose: dict[str, Any]) -> None:
    given = {compose["services"][name]["environment"]["TOKENTAPE_RETENTION_S"] for name in ("worker", "producer")}
    assert given == {"${TOKENTAPE_RETENTION_S:-86400}"}


def test_each_image_of_ours_is_built_once_and_never_pulled(compose: dict[str, Any]) -> None:
    services = [compose["services"][name] for name in OURS]
    built = {service["image"]: service["build"]["dockerfile"] for service in services if "build" in service}
    assert built == {f"tokentape-{name}": f"{name}/Dockerfile" for name in ("worker", "producer")}
    assert sum("build" in service for service in services) == len(built)
    assert all(service["image"] in built for service in services)
    assert all(service["pull_policy"] == ("build" if "build" in service else "never") for service in services)


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
    assert settings.retention_s == Settings().retention_s
    if environment:
        assert settings.redis_url == "redis://:a-secret@valkey:6379/0"


def test_the_commands_are_ours(compose: dict[str, Any]) -> None:
    program, *arguments = compose["services"]["simulator"]["entrypoint"]
    assert program == "tokentape"
    command = [sys.executable, "-P", "-m", "tokentape.cli", *arguments, "--help"]
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


class Valkey:
    """The server as the file starts it, but for its folders and the port."""

    def __init__(self, service: dict[str, Any], folder: Path, binary: Path) -> None:
        self.socket = folder / "server.socket"
        self.password_file = folder / "redis_password"
        self._folder = folder
        self._service = service
        (folder / "bin").mkdir()
        (folder / "bin/valkey-server").symlink_to(binary)

    def _here(self, script: str) -> str:
        return script.replace("$$", "$").replace("/run/secrets", str(self._folder)).replace("/data", str(self._folder))

    def _environment(self) -> dict[str, str]:
        return {"PATH": f"{self._folder}/bin:/usr/bin:/bin", "MAXMEMORY": "100mb"}

    def start(self) -> subprocess.Popen[str]:
        *shell, script = self._service["command"]
        script = self._here(script).replace("appendonly", f"port 0\nunixsocket {self.socket}\nappendonly", 1)
        command = [shutil.which(shell[0]) or "sh", *shell[1:], script]
        return subprocess.Popen(command, env=self._environment(), stderr=subprocess.PIPE, text=True)

    def healthy(self, cli: str) -> bool:
        """What the health check says where `valkey-cli` is this script."""
        program = self._folder / "bin/valkey-cli"
        program.write_text(f"#!/bin/sh\n{cli}\n")
        program.chmod(0o755)
        kind, script = self._service["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        done = subprocess.run(["sh", "-c", self._here(script)], env=self._environment(), check=False, timeout=30)
        return done.returncode == 0


@pytest.fixture
def valkey_service(compose: dict[str, Any], tmp_path: Path, server_binary: Path | None) -> Valkey:
    return Valkey(compose["services"]["valkey"], tmp_path, server_binary or bundled_binary())


@pytest.fixture
def server(valkey_service: Valkey) -> Iterator[tuple[str, str]]:
    """It runs. -> URL, password"""
    valkey_service.password_file.write_text("a-password-of-the-test\n")
    process = valkey_service.start()
    try:
        url, password = f"unix://{valkey_service.socket}", "a-password-of-the-test"
        with redis.Redis.from_url(url, password=password) as client:
            wait_until(lambda: answers(client))
        yield url, password
    finally:
        process.terminate()  # the shell has become the server
        process.communicate(timeout=30)
        assert process.returncode == 0


def test_the_server_keeps_everything_and_wants_the_password(server: tuple[str, str]) -> None:
    url, password = server
    with redis.Redis.from_url(url, password=password) as client:
        assert client.ping()
        assert client.config_get("appendonly", "appendfsync", "save", "maxmemory-policy", "maxmemory") == {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "maxmemory": str(100 * 1024 * 1024),
        }
    with redis.Redis.from_url(url) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


@pytest.mark.parametrize("content", [None, "", " \n\t\r\n"], ids=["missing", "empty", "blank"])
def test_no_server_starts_without_a_password(valkey_service: Valkey, content: str | None) -> None:
    if content is not None:
        valkey_service.password_file.write_text(content)

    process = valkey_service.start()
    try:
        said = process.communicate(timeout=30)[1]
    finally:
        process.kill()

    assert process.returncode == 1
    assert "secrets/redis_password is empty, or cannot be read" in said
    assert not valkey_service.socket.exists()
    assert not valkey_service.healthy("echo PONG")


def test_a_server_is_healthy_that_answers_with_the_password(valkey_service: Valkey) -> None:
    valkey_service.password_file.write_text("a-password\r\n")

    assert valkey_service.healthy('[ "$REDISCLI_AUTH $*" = "a-password ping" ] && echo PONG')
    assert not valkey_service.healthy("echo LOADING Valkey is loading the dataset in memory")
    assert not valkey_service.healthy("echo Could not connect; exit 1")


def test_the_commands_that_make_the_secrets_are_in_the_file_as_in_the_docs() -> None:
    (commands,) = re.findall(r"^```\n(mkdir .*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    assert all(f"#   {line}\n" in FILE.read_text() for line in commands.splitlines())


@pytest.mark.parametrize(
    ("keys", "key"),
    [({"OPENAI_API_KEY": "a-key"}, "a-key"), ({"OPENAI_API_KEY": ""}, "none"), ({}, "none")],
    ids=["key", "empty", "keyless"],
)
def test_containers_can_read_the_secrets_that_the_commands_make(tmp_path: Path, keys: dict[str, str], key: str) -> None:
    (commands,) = re.findall(r"^```\n(mkdir .*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "openssl").write_text("#!/bin/sh\necho 5eed\n")
    (tmp_path / "openssl").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **keys}
    subprocess.run(["sh", "-euc", f"umask 077\n{commands}"], cwd=tmp_path, env=environment, check=True, timeout=30)

    made = {file.name: (file.stat().st_mode & 0o777, file.read_text()) for file in (tmp_path / "secrets").iterdir()}
    assert made == {"redis_password": (0o644, "5eed\n"), "openai_api_key": (0o644, key)}
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
