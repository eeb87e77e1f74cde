"""The command as a process: Ctrl-C, pipes, and children that end with their owner."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tokentape import Client
from tokentape.child import Child, ChildFailed

from .conftest import Environment, body, command, wait_until

WAIT_S = 30.0


def start(environment: Environment, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def gone(watched: int) -> bool:
    return bool(select.select([watched], [], [], WAIT_S)[0])


@pytest.mark.parametrize("arguments", [("follow",), ("follow", "--json"), ("result",)])
def test_ctrl_c_ends_a_wait_with_130_and_no_traceback(
    environment: Environment, idle: Environment, idle_client: Client, arguments: tuple[str, ...]
) -> None:
    job = idle_client.submit(request=body("Wait"))
    name, *options = arguments
    process = start({**environment, **idle}, name, job.id, *options)
    # Its connection stands: it is past its imports, where nothing of ours could catch a signal.
    wait_until(lambda: connections(process.pid))

    process.send_signal(signal.SIGINT)

    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def connections(pid: int) -> int:
    """How many sockets a process has open."""
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += link.readlink().name.startswith("socket:")
    return count


def test_ctrl_c_while_following_says_that_the_job_goes_on(
    environment: Environment, idle: Environment, idle_client: Client
) -> None:
    process = start({**environment, **idle}, "submit", "Wait", "--follow")
    assert process.stderr is not None
    job_id = process.stderr.readline().decode().strip()

    process.send_signal(signal.SIGINT)

    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert f"the job goes on: tokentape follow {job_id}" in errors.decode()
    assert idle_client.status(job_id).status == "queued"


def test_a_reader_that_leaves_ends_the_command_quietly(environment: Environment, client: Client) -> None:
    job = client.submit(request=body("Much", chunks=5000))
    job.result()
    process = start(environment, "follow", job.id, "--json")
    assert process.stdout is not None
    assert process.stderr is not None

    first = json.loads(process.stdout.readline())
    process.stdout.close()

    assert first["id"] == "0-1"
    assert process.wait(timeout=WAIT_S) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_text_that_the_locale_cannot_write_is_written_as_utf_8(environment: Environment, client: Client) -> None:
    job = client.submit(request=body("Bytes", chunks=40))
    text = job.result().text

    done = subprocess.run(
        command("result", job.id),
        env={**environment, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        check=True,
    )

    assert not text.isascii()
    assert done.stdout.decode() == text + "\n"


def module(folder: Path, code: str) -> Environment:
    """A module `program` and the environment in which a child can run it."""
    (folder / "program.py").write_text(code)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_a_child_runs_a_module_with_its_arguments(tmp_path: Path) -> None:
    environment = module(
        tmp_path,
        "import json, sys, time\nprint(json.dumps({'ran': [*sys.argv[1:], __name__]}), flush=True)\ntime.sleep(600)",
    )

    with Child("program", "program", "a", "b", env=environment) as child:
        said = child.wait_json(WAIT_S)
        watched = os.pidfd_open(child.pid)

    assert said == {"ran": ["a", "b", "__main__"]}
    assert gone(watched)
    os.close(watched)


def test_a_child_that_fails_to_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    environment = module(tmp_path, "import sys\nprint('first', file=sys.stderr)\nsys.exit('no port is free')")

    with (
        Child("program", "program", env=environment) as child,
        pytest.raises(ChildFailed, match=r"program ended \(exit code 1\): no port is free"),
    ):
        child.wait_json(WAIT_S)


def test_a_child_that_does_not_heed_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokentape.child.STOP_WAIT_S", 0.1)
    environment = module(
        tmp_path,
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('{}', flush=True)\ntime.sleep(600)",
    )
    child = Child("program", "program", env=environment)
    child.wait_json(WAIT_S)
    watched = os.pidfd_open(child.pid)

    child.stop()

    assert gone(watched)
    os.close(watched)


def test_a_child_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    environment = module(tmp_path, "import time\nprint('{}', flush=True)\ntime.sleep(600)")
    owner_code = (
        "import os, time\n"
        "from tokentape.child import Child\n"
        "child = Child('program', 'program', env=os.environ)\n"
        "child.wait_json(30)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-P", "-c", owner_code], env=environment, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        watched = os.pidfd_open(int(owner.stdout.readline()))

        owner.kill()

        assert gone(watched)
    os.close(watched)


def test_a_worker_logs_json_where_json_is_asked_for(environment: Environment, namespace: str) -> None:
    env = environment | {"TOKENTAPE_NAMESPACE": namespace, "TOKENTAPE_LOG_FORMAT": "text"}
    done = subprocess.run(
        command("worker", "--burst", "--json"), env=env, capture_output=True, text=True, check=True, timeout=60
    )
    assert "worker ready" in [json.loads(line)["event"] for line in done.stderr.splitlines()]


def test_a_worker_that_can_call_no_upstream_takes_no_jobs(environment: Environment, tmp_path: Path) -> None:
    config = tmp_path / "tokentape.toml"
    config.write_text('[upstreams.main]\napi_key_env = "NOT_SET_ANYWHERE"\n')

    done = subprocess.run(
        command("worker"),
        env={**environment, "TOKENTAPE_CONFIG": str(config), "TOKENTAPE_NAMESPACE": "no-upstream"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert "no upstream can be called: main: api_key_env: the environment variable NOT_SET_ANYWHERE" in done.stderr
    assert "worker ready" not in done.stderr
