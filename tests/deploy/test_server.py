"""The server as deploy/redis/tokentape.conf and Kubernetes' manifest start it, but for its folders and the port."""

from __future__ import annotations

import re
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

DOCS = ROOT / "docs/deployment.md"
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
    (tmp_path / "passwords").mkdir()
    (tmp_path / "passwords/default").write_text("a-password")
    (tmp_path / "passwords/tokentape-client").write_text("the-old-one")
    render = [str(ROOT / "deploy/redis/render"), "tokentape", str(tmp_path / "passwords")]
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


def logs_in(operator: redis.Redis, password: str) -> bool:
    path = operator.get_connection_kwargs()["path"]
    with redis.Redis(unix_socket_path=path, username="tokentape-client", password=password) as connection:
        try:
            return bool(connection.ping())
        except redis.AuthenticationError:
            return False


def test_a_password_is_changed_as_the_docs_say(operator: redis.Redis, tmp_path: Path) -> None:
    (commands,) = re.findall(r"^```\n(openssl [^`]*SETUSER[^`]*)```", DOCS.read_text(), re.MULTILINE)
    for name, script in (("openssl", "echo the-new-one"), ("redis-cli", f"printf '%s\\n' \"$@\" >{tmp_path}/asked")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert (logs_in(operator, "the-old-one"), logs_in(operator, "the-new-one")) == (True, False)

    subprocess.run(["sh", "-euc", commands], cwd=tmp_path, env=environment, check=True, timeout=30)
    user, name, askpass, *command = (tmp_path / "asked").read_text().splitlines()
    operator.execute_command(*command)

    assert (user, name, askpass) == ("--user", "default", "--askpass")
    assert (logs_in(operator, "the-old-one"), logs_in(operator, "the-new-one")) == (True, True)
    operator.acl_load()  # the folder in which the commands ran is the server's
    assert (logs_in(operator, "the-old-one"), logs_in(operator, "the-new-one")) == (False, True)
