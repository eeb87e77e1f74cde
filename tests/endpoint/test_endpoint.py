"""The endpoint file: who is found, who is not, and that nobody else can read or replace it."""

from __future__ import annotations

import json
import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tokentape import Client, Settings, endpoint
from tokentape.endpoint import Endpoint, EndpointUnusable, Publication
from tokentape.finder import Finder, finder
from tokentape.settings import DEFAULT_REDIS_URL, load

#: Publishes an endpoint, says so, and ends when its standard input closes, without removing anything.
PUBLISHER = """
import os, pathlib, sys
from tokentape.endpoint import Endpoint, Publication
kept = Publication.make(Endpoint(sys.argv[2], "theirs", os.getpid()), pathlib.Path(sys.argv[1]))
print(flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "endpoint.json"


@pytest.fixture
def ours() -> Endpoint:
    return Endpoint(f"redis://:{secrets.token_hex(8)}@127.0.0.1:12345/0", "ours", os.getpid())


@pytest.fixture
def publisher(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, whose endpoint stands at `path`."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PUBLISHER, str(path), "redis://127.0.0.1:23456/0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_what_is_published_is_found_until_it_is_removed(path: Path, ours: Endpoint) -> None:
    publication = Publication.make(ours, path)

    found = endpoint.find(path)
    publication.remove()
    publication.remove()

    assert found == ours
    assert endpoint.find(path) is None
    assert list(path.parent.iterdir()) == []


def test_nobody_else_can_read_it_whatever_the_umask(path: Path, ours: Endpoint) -> None:
    before = os.umask(0)
    try:
        publication = Publication.make(ours, path)
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    publication.remove()


def test_the_password_is_not_shown(ours: Endpoint) -> None:
    password = ours.redis_url.partition("@")[0].rpartition(":")[2]

    assert password not in repr(ours)


def test_another_process_is_found(path: Path, publisher: subprocess.Popen[bytes]) -> None:
    found = endpoint.find(path)

    assert found == Endpoint("redis://127.0.0.1:23456/0", "theirs", publisher.pid)


def test_the_file_of_a_process_that_was_killed_is_ignored_and_replaced(
    path: Path, ours: Endpoint, publisher: subprocess.Popen[bytes]
) -> None:
    end(publisher)

    with pytest.raises(EndpointUnusable, match=rf"process {publisher.pid}\) has ended"):
        endpoint.find(path)
    publication = Publication.make(ours, path)

    assert endpoint.find(path) == ours
    publication.remove()


def test_a_file_is_stale_though_its_process_id_is_anothers_by_now(
    path: Path, publisher: subprocess.Popen[bytes]
) -> None:
    end(publisher)
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": os.getpid()}))

    with pytest.raises(EndpointUnusable, match="has ended"):
        endpoint.find(path)


def test_the_file_of_a_process_that_lives_is_left_to_it(
    path: Path, ours: Endpoint, publisher: subprocess.Popen[bytes]
) -> None:
    with pytest.raises(EndpointUnusable, match=f"another `tokentape up` \\(process {publisher.pid}\\)"):
        Publication.make(ours, path)

    found = endpoint.find(path)
    assert found is not None
    assert found.pid == publisher.pid


def test_a_file_that_another_has_replaced_is_not_removed(path: Path, ours: Endpoint) -> None:
    publication = Publication.make(ours, path)
    path.unlink()
    path.write_text("another's")

    publication.remove()

    assert path.read_text() == "another's"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_a_file_that_others_can_touch_is_ignored(path: Path, ours: Endpoint, mode: int) -> None:
    publication = Publication.make(ours, path)
    path.chmod(mode)

    with pytest.raises(EndpointUnusable, match="this user alone"):
        endpoint.find(path)
    publication.remove()


def test_a_folder_that_others_can_write_to_is_neither_read_nor_written(path: Path, ours: Endpoint) -> None:
    publication = Publication.make(ours, path)
    path.parent.chmod(0o777)

    with pytest.raises(EndpointUnusable, match="this user alone"):
        endpoint.find(path)
    with pytest.raises(EndpointUnusable, match="this user alone"):
        Publication.make(ours, path)
    publication.remove()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(path: Path, ours: Endpoint) -> None:
    path.parent.mkdir(mode=0o700)
    os.chown(path.parent, 12345, -1)

    with pytest.raises(EndpointUnusable, match="this user alone"):
        Publication.make(ours, path)


def test_a_folder_that_is_a_link_is_not_used(path: Path, ours: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    path.parent.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(EndpointUnusable, match="this user alone"):
        Publication.make(ours, path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, ours: Endpoint) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(EndpointUnusable, match="cannot be written"):
        Publication.make(ours, tmp_path / "file" / "run" / "endpoint.json")


def test_a_file_that_is_a_link_is_not_followed(path: Path, ours: Endpoint, tmp_path: Path) -> None:
    publication = Publication.make(ours, tmp_path / "real" / "endpoint.json")
    path.parent.mkdir(mode=0o700)
    path.symlink_to(publication.path)

    with pytest.raises(EndpointUnusable, match="cannot be read"):
        endpoint.find(path)
    publication.remove()


@pytest.mark.parametrize("content", ["", "nonsense", "[]", "7", '{"format": 1}', '{"format": 2, "redis_url": "x"}'])
def test_what_a_living_process_wrote_in_another_form_is_ignored(path: Path, ours: Endpoint, content: str) -> None:
    publication = Publication.make(ours, path)
    path.write_text(content)

    with pytest.raises(EndpointUnusable, match="another version"):
        endpoint.find(path)
    publication.remove()


def test_it_stands_in_the_runtime_folder_or_else_among_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    in_runtime = endpoint.default_path()
    monkeypatch.setattr("tokentape.endpoint.os.getuid", lambda: 987_654_321)  # has no /run/user of their own
    monkeypatch.setenv("XDG_RUNTIME_DIR", "not/absolute")
    monkeypatch.setattr("tokentape.endpoint.tempfile.gettempdir", lambda: "/temporary")
    elsewhere = endpoint.default_path()

    def none() -> str:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr("tokentape.endpoint.tempfile.gettempdir", none)
    nowhere = endpoint.default_path()

    assert in_runtime == tmp_path / "tokentape" / "endpoint.json"
    assert elsewhere == Path("/temporary/tokentape-987654321/endpoint.json")
    assert nowhere == Path("/tmp/tokentape-987654321/endpoint.json")


# ---- the settings


@pytest.fixture
def found(path: Path, ours: Endpoint) -> Iterator[Finder]:
    """What the command line does, with an endpoint that is there."""
    publication = Publication.make(ours, path)
    one = Finder(pytest.fail, path)
    before = finder.set(one)
    yield one
    finder.reset(before)
    publication.remove()


def test_settings_that_name_no_server_take_the_endpoint(found: Finder, ours: Endpoint) -> None:
    settings = Settings.load()

    assert (settings.redis_url, settings.namespace) == (ours.redis_url, "ours")
    assert str(load().source("redis_url")) == "`tokentape up`"
    assert f"process {os.getpid()}" in found.source


@pytest.mark.usefixtures("found")
def test_a_namespace_that_is_set_stays(monkeypatch: pytest.MonkeyPatch, ours: Endpoint) -> None:
    monkeypatch.setenv("TOKENTAPE_NAMESPACE", "mine")

    settings = Settings.load()

    assert (settings.redis_url, settings.namespace) == (ours.redis_url, "mine")


@pytest.mark.parametrize("name", ["redis_url", "tape_url"])
@pytest.mark.parametrize("where", ["environment", "file", "argument"])
def test_a_server_that_is_named_anywhere_is_the_one(
    monkeypatch: pytest.MonkeyPatch, found: Finder, tmp_path: Path, name: str, where: str
) -> None:
    url = "redis://127.0.0.1:1/0"
    if where == "environment":
        monkeypatch.setenv(f"TOKENTAPE_{name.upper()}", url)
    elif where == "file":
        (tmp_path / "tokentape.toml").write_text(f'{name} = "{url}"\n')
        monkeypatch.setenv("TOKENTAPE_CONFIG", str(tmp_path / "tokentape.toml"))

    overrides: dict[str, Any] = {name: url} if where == "argument" else {}

    settings = Settings.load(**overrides)

    assert getattr(settings, name) == url
    assert settings.namespace == "tokentape"
    assert found.endpoint is None


@pytest.mark.usefixtures("found")
def test_a_password_that_is_set_is_for_another_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(secrets.token_hex(8))
    monkeypatch.setenv("TOKENTAPE_REDIS_PASSWORD_FILE", str(tmp_path / "password"))

    settings = Settings.load()

    assert settings.redis_url.endswith("@127.0.0.1:6379/0")


def test_an_application_does_not_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ours: Endpoint) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    publication = Publication.make(ours)

    with Client() as client:
        url = client.settings.redis_url

    assert url == DEFAULT_REDIS_URL
    publication.remove()


def test_a_file_that_is_ignored_is_told_once(path: Path, publisher: subprocess.Popen[bytes]) -> None:
    end(publisher)
    told: list[str] = []
    one = Finder(told.append, path)

    answers = [one(), one()]

    assert answers == [{}, {}]
    assert told == [one.ignored]
