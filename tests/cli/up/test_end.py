"""How `tokentape up` ends: streams may finish, and nothing is left."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys

import pytest

from tests.embedded.owner import parent_of
from tokentape import Client

from ..conftest import Environment, body, command, wait_until
from .conftest import LONG, WAIT_S, Start, leftovers, tokentape

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


def test_ctrl_c_lets_streams_finish_and_leaves_nothing(
    start: Start, terminal: Environment, elsewhere: Environment, elsewhere_client: Client
) -> None:
    up = start(env=elsewhere).ready()
    request = body("Slowly", chunks=40, interval_ms=50)
    job = elsewhere_client.submit(request=request)
    next(iter(job.text()))

    up.ctrl_c()

    code, _ = up.finish()
    view = elsewhere_client.status(job.id)
    assert code == 130
    assert (view.status, view.attempts) == ("completed", 1)
    assert "Traceback" not in "".join(up.log)
    assert wait_until(lambda: not up.processes())
    assert leftovers(terminal) == []


def test_a_second_ctrl_c_puts_streams_back_at_once(
    start: Start, elsewhere: Environment, elsewhere_client: Client
) -> None:
    up = start(env={**elsewhere, "TOKENTAPE_GRACE_S": "3600"}).ready()
    job = elsewhere_client.submit(request=body("Long", **LONG))
    next(iter(job.text()))
    up.ctrl_c()
    up.wait_said("worker stops")

    up.ctrl_c()

    code, _ = up.finish()
    overview = elsewhere_client.overview()
    assert code == 130
    assert sum(overview.queued.values()) == 1
    assert overview.workers == []
    assert wait_until(lambda: not up.processes())
    elsewhere_client.cancel(job.id)


def test_sigterm_is_exit_code_0_and_leaves_nothing(start: Start, terminal: Environment) -> None:
    up = start().ready()

    up.signal(signal.SIGTERM)

    code, _ = up.finish()
    assert code == 0
    assert wait_until(lambda: not up.processes())
    assert leftovers(terminal) == []


@pytest.mark.parametrize("moment", ["server started", "simulator started", "worker-1 started"])
def test_ctrl_c_while_it_starts_leaves_nothing(start: Start, terminal: Environment, moment: str) -> None:
    up = start()
    up.wait_said(moment)

    up.ctrl_c()

    code, _ = up.finish()
    assert code == 130
    assert "Traceback" not in "".join(up.log)
    assert wait_until(lambda: not up.processes())
    assert leftovers(terminal) == []


def test_sigterm_to_all_of_its_processes_at_once_waits_for_no_stream(start: Start, terminal: Environment) -> None:
    up = start(env={"TOKENTAPE_GRACE_S": "3600"}).ready()
    submitted = tokentape(terminal, "submit", "--request", "-", stdin=json.dumps(body("Long", **LONG)))
    wait_until(lambda: '"running"' in tokentape(terminal, "status", submitted.stdout.strip(), "--json").stdout, WAIT_S)

    for pid in up.processes():
        os.kill(pid, signal.SIGTERM)

    code, _ = up.finish()
    assert code == 0
    assert "Traceback" not in "".join(up.log)
    assert wait_until(lambda: not up.processes())
    assert leftovers(terminal) == []


def test_a_supervisor_that_is_killed_leaves_no_server(start: Start) -> None:
    up = start().ready()

    os.kill(parent_of(up.pid_of("server")), signal.SIGKILL)

    code, _ = up.finish()
    assert code == 1
    assert up.said("error: the embedded server's supervisor is gone")
    assert wait_until(lambda: not up.processes())


def test_one_that_is_killed_leaves_no_process(start: Start) -> None:
    up = start("--workers", "2").ready()
    assert len(up.processes()) >= 5

    up.process.kill()

    assert wait_until(lambda: not up.processes())


def test_a_log_without_a_reader_ends_it(terminal: Environment, elsewhere: Environment) -> None:
    environment = {**terminal, **elsewhere}
    with subprocess.Popen(command("up"), env=environment, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stderr is not None
        line = b""
        while b"worker-1 started" not in line:
            line = process.stderr.readline()
        worker = os.pidfd_open(int(line.rpartition(b"pid=")[2]))

        process.stderr.close()  # and the worker, which is ready soon, says so

        assert process.wait(timeout=WAIT_S) == 141
    assert select.select([worker], [], [], WAIT_S)[0]
    os.close(worker)


def test_a_log_that_nobody_reads_holds_up_neither_jobs_nor_the_end(
    terminal: Environment, elsewhere: Environment, elsewhere_client: Client
) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)  # full after a few lines
    environment = {**terminal, **elsewhere}
    with subprocess.Popen(command("up"), env=environment, stderr=writer, start_new_session=True) as process:
        os.close(writer)
        jobs = list(elsewhere_client.submit_many(body(f"job {number}") for number in range(30)))
        assert all(job.result(WAIT_S).text for job in jobs)

        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=WAIT_S) == 0
    os.close(reader)
