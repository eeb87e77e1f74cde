"""A server with the users of deploy/redis/users.acl, and the files of the repository that describe deployments."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from tokentape import Settings
from tokentape.embedded import EmbeddedServer

ROOT = Path(__file__).parents[2]
#: Not the default, so that the tests see whether the namespace is replaced everywhere.
NAMESPACE = "blue"
#: Another one on the same server, whose name begins with that of the first.
NEIGHBOUR = "blue-eu"
USERS = ("client", "worker", "service", "scaler", "health")


@dataclass(frozen=True)
class Guarded:
    """A server that runs with the rendered ACL file."""

    url: str
    passwords: Path

    def login(self, user: str) -> dict[str, str]:
        """The environment that a process of this user is given."""
        name = "default" if user == "default" else f"{NAMESPACE}-{user}"
        return {
            "TOKENTAPE_REDIS_URL": self.url.replace("redis://", f"redis://{name}@"),
            "TOKENTAPE_REDIS_PASSWORD_FILE": str(self.passwords / name),
            "TOKENTAPE_NAMESPACE": NAMESPACE,
        }

    def settings(self, user: str, **overrides: object) -> Settings:
        return Settings.load(self.login(user), **overrides)

    def connect(self, user: str) -> redis.Redis:
        return redis.Redis.from_url(self.settings(user).redis_url)


def answers(connection: redis.Redis) -> bool:
    """Whether a server that was just started listens, and has loaded what it kept."""
    try:
        return bool(connection.ping())
    except redis.ConnectionError as error:
        if isinstance(error, redis.AuthenticationError):
            raise
        return False


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory, server_binary: Path | None) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("acl")
    passwords = folder / "passwords"
    passwords.mkdir()
    for name in ("default", *(f"{namespace}-{user}" for namespace in (NAMESPACE, NEIGHBOUR) for user in USERS)):
        (passwords / name).write_text(f"{secrets.token_hex(16)}\n")
    render = [str(ROOT / "deploy/redis/render"), f"{NAMESPACE},{NEIGHBOUR}", str(passwords)]
    rendered = subprocess.run(render, capture_output=True, text=True, check=True, timeout=30).stdout
    file = folder / "users.acl"
    file.write_text("user default on nopass ~* &* +@all\n")  # until its owner has found that the server answers
    with EmbeddedServer(config={"aclfile": str(file)}, binary=server_binary) as server:
        with redis.Redis.from_url(server.url) as operator:
            file.write_text(rendered)
            operator.acl_load()
        yield Guarded(server.url, passwords)
