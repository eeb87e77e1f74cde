"""The server as deploy/redis/tokentape.conf and Kubernetes' manifest start it, but for its folders and the port."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from tests.service.conftest import wait_until
from tokentape.embedded import bundled_binary

from .conftest import ROOT, answers

CONF = ROOT / "deploy/redis/tokentape.conf"
MANIFEST = ROOT / "deploy/kubernetes/valkey/valkey.yaml"


def manifest() -> dict[str, Any]:
    """The container of the manifest."""
    (server,) = [one for one in yaml.safe_load_all(MANIFEST.read_text()) if one["kind"] == "StatefulSet"]
    (container,) = server["spec"]["template"]["spec"]["containers"]
    return dict(container)


def of_the_conf(folder: Path) -> list[str]:
    text = CONF.read_text().replace("/etc/tokentape", str(folder))
    (folder / "tokentape.conf").write_text(f"include {folder}/included.conf\ndir {folder}\n")
    (folder / "included.conf").write_text(text)
    return [str(folder / "tokentape.conf")]


def of_the_manifest(folder: Path) -> list[str]:
    program, *arguments = manifest()["command"]
    assert program == "valkey-server"
    mounts = {"/data": str(folder), "/run/secrets/acl/users.acl": str(folder / "users.acl")}
    return [mounts.get(argument, argument) for argument in arguments]


@pytest.fixture(params=[of_the_conf, of_the_manifest], ids=["tokentape.conf", "kubernetes"])
def operator(request: pytest.FixtureRequest, tmp_path: Path, server_binary: Path | None) -> Iterator[redis.Redis]:
    """The operator's connection to a server that runs so."""
    (tmp_path / "default").write_text("a-password")
    render = [ROOT / "deploy/redis/render", "tokentape", tmp_path]
    rendered = subprocess.run(render, capture_output=True, text=True, check=True, timeout=30).stdout
    (tmp_path / "users.acl").write_text(rendered)
    socket = tmp_path / "server.socket"
    here = ["--port", "0", "--unixsocket", str(socket)]
    process = subprocess.Popen([server_binary or bundled_binary(), *request.param(tmp_path), *here])
    try:
        with redis.Redis.from_url(f"unix://{socket}", password="a-password", decode_responses=True) as connection:
            wait_until(lambda: answers(connection))
            yield connection
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0


def test_it_keeps_everything_by_its_append_only_file_alone(operator: redis.Redis) -> None:
    asked = ("appendonly", "appendfsync", "save", "maxmemory-policy", "maxmemory")
    assert operator.config_get(*asked) == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "maxmemory": str(1024**3),
    }


def test_its_users_are_those_of_the_file(operator: redis.Redis) -> None:
    assert operator.acl_whoami() == "default"
    assert {"tokentape-client", "tokentape-worker"} < set(operator.acl_users())
