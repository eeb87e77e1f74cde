"""A server is gone when its owner is gone, however that ended, and not before."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tokentape.embedded import EmbeddedServer

from .owner import Owner, parent_of, wait_gone, watch

StartOwner = Callable[..., Owner]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes by /proc and pidfd")


def test_server_and_scratch_directory_are_gone_after_sigkill_of_the_owner(start_owner: StartOwner) -> None:
    owner = start_owner()
    server, supervisor = watch(owner.server_pid), watch(owner.supervisor_pid)
    assert owner.directory.is_dir()

    owner.kill()

    assert wait_gone(server)
    assert wait_gone(supervisor)
    assert not owner.directory.exists()


def test_an_owner_that_ends_without_a_stop_leaves_nothing(start_owner: StartOwner) -> None:
    owner = start_owner(then="sys.exit()")
    server = watch(owner.server_pid)

    owner.process.wait()

    assert wait_gone(server)


def test_a_forked_child_does_not_keep_the_server(start_owner: StartOwner) -> None:
    owner = start_owner(
        then="reading, _ = os.pipe()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os.read(reading, 1)\n"  # for ever: it holds the other end itself
        "say(child=child)"
    )
    child = owner.hear()["child"]
    server = watch(owner.server_pid)

    owner.kill()

    assert wait_gone(server)
    os.kill(child, signal.SIGKILL)  # it was still there


def test_a_child_program_does_not_keep_the_server(start_owner: StartOwner) -> None:
    owner = start_owner(
        then="import subprocess\nchild = subprocess.Popen(['sleep', '600'], close_fds=False)\nsay(child=child.pid)"
    )
    child = owner.hear()["child"]
    server = watch(owner.server_pid)

    owner.kill()

    assert wait_gone(server)
    os.kill(child, signal.SIGKILL)


def test_ctrl_c_leaves_the_server_to_its_owner(start_owner: StartOwner) -> None:
    owner = start_owner(
        then="import redis\n"
        "try:\n"
        "    say(ready=True)\n"
        "    sys.stdin.read()\n"
        "except KeyboardInterrupt:\n"
        "    say(answered=redis.Redis.from_url(server.url).ping())\n"
        "    server.stop()\n"
        "    sys.exit()"
    )
    assert owner.hear() == {"ready": True}

    owner.interrupt_terminal()

    assert owner.hear() == {"answered": True}
    assert owner.process.wait() == 0


def test_a_terminated_supervisor_takes_the_server_with_it(start_owner: StartOwner) -> None:
    owner = start_owner()
    server, supervisor = watch(owner.server_pid), watch(owner.supervisor_pid)

    os.kill(owner.supervisor_pid, signal.SIGTERM)

    assert wait_gone(server)
    assert wait_gone(supervisor)
    assert not owner.directory.exists()


def test_what_a_killed_owner_wrote_is_there_for_the_next(
    start_owner: StartOwner, tmp_path: Path, server_binary: Path | None
) -> None:
    owner = start_owner(data=tmp_path)
    with owner.client() as client:
        client.set("key", "value")

    owner.kill()

    with EmbeddedServer(data=tmp_path, unix_socket=True, binary=server_binary) as server:
        assert parent_of(server.pid) != owner.supervisor_pid
        owner.url = server.url
        with owner.client() as client:
            assert client.get("key") == b"value"
