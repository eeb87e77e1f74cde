"""What ends is started again by `tokentape up`, and what is kept is there after it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import redis

from tokentape.simulator import expected_text

from ..conftest import Environment, body, wait_until
from .conftest import Start, tokentape

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


def test_a_worker_that_is_killed_is_started_again(start: Start, terminal: Environment) -> None:
    up = start().ready()

    os.kill(up.pid_of("worker-1"), signal.SIGKILL)

    assert up.wait_said("warning: worker-1 was ended by SIGKILL, starts again in 0.5 s")
    assert up.wait_said("worker ready", times=2)
    assert tokentape(terminal, "submit", "--follow", "Again").returncode == 0


def test_a_server_that_is_killed_comes_back_under_its_address_with_its_data(
    start: Start, terminal: Environment, tmp_path: Path
) -> None:
    up = start("--data", str(tmp_path / "data")).ready()
    job = tokentape(terminal, "submit", "Kept").stdout.strip()
    assert tokentape(terminal, "result", job).returncode == 0

    os.kill(up.pid_of("server"), signal.SIGKILL)
    up.wait_said("server started", times=2)
    after = tokentape(terminal, "submit", "--follow", "After")

    assert up.said("warning: server was ended by SIGKILL, starts again")
    assert after.returncode == 0
    assert tokentape(terminal, "result", job).returncode == 0


@pytest.mark.parametrize(
    ("name", "where", "back", "refused"),
    [
        ("server", "server started", "server started", "error: the embedded server found no port"),
        ("simulator", "the simulator answers", "simulator ready", "error: cannot listen on 127.0.0.1:"),
    ],
)
def test_one_whose_port_another_program_has_taken_is_back_once_that_has_gone(
    start: Start, terminal: Environment, name: str, where: str, back: str, refused: str
) -> None:
    up = start().ready()
    port = up.port_of(where)
    up.signal(signal.SIGSTOP)  # it is not to be quicker than this
    os.kill(up.pid_of(name), signal.SIGKILL)
    with listening_on(port):
        up.signal(signal.SIGCONT)
        up.wait_said(refused)

    up.wait_said(back, times=2)
    answer = tokentape(terminal, "submit", "--follow", "Still there?")

    assert answer.returncode == 0


def listening_on(port: int) -> socket.socket:
    """A socket that has the port, as soon as who had it has gone."""

    def bind() -> bool:
        with contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return True
        return False

    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that were open stay for a while
    wait_until(bind)
    taken.listen()
    return taken


def test_a_simulator_that_is_killed_comes_back_where_the_workers_look_for_it(
    start: Start, terminal: Environment
) -> None:
    up = start().ready()

    os.kill(up.pid_of("simulator"), signal.SIGKILL)
    up.wait_said("simulator ready", times=2)
    answer = tokentape(terminal, "submit", "--follow", "Still there?")

    assert answer.returncode == 0


# ---- what is kept


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_with_data_a_job_that_was_under_way_is_answered_by_the_next(
    start: Start, terminal: Environment, tmp_path: Path, end: int
) -> None:
    settings = {"TOKENTAPE_GRACE_S": "0", "TOKENTAPE_LEASE_S": "1"}
    options = ("--data", str(tmp_path / "data"))
    first = start(*options, env=settings).ready()
    ended = tokentape(terminal, "submit", "First").stdout.strip()
    assert tokentape(terminal, "result", ended).returncode == 0
    request = body("Then", chunks=60, interval_ms=50)
    job = tokentape(terminal, "submit", "--request", "-", stdin=json.dumps(request)).stdout.strip()
    wait_until(lambda: json.loads(tokentape(terminal, "status", job, "--json").stdout)["status"] == "running")
    with contextlib.closing(redis.Redis.from_url(json.loads(endpoint_of(terminal))["redis_url"])) as server:
        server.execute_command("WAITAOF", 1, 0, 0)  # on the disk, as it is after a second anyway

    os.killpg(first.process.pid, end)  # as Ctrl-C in a terminal
    code, _ = first.finish()
    start(*options, env=settings).ready()

    assert code == (130 if end == signal.SIGINT else -end)
    assert tokentape(terminal, "result", ended).returncode == 0
    assert tokentape(terminal, "result", job).stdout == expected_text(request) + "\n"


def endpoint_of(terminal: Environment) -> str:
    return Path(terminal["XDG_RUNTIME_DIR"], "tokentape", "endpoint.json").read_text()
