"""The users of deploy/redis/users.acl on a real server: each can do its work, and nothing beside it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import AuthenticationError, NoPermissionError

from tests.service.conftest import WorkerProcess, body, wait_until
from tokentape import Client, JobCancelled, JobExpired
from tokentape.queue import QueueKeys
from tokentape.simulator import SimulatorThread, expected_text
from tokentape_worker.embedded import EmbeddedWorker

from .conftest import NAMESPACE, NEIGHBOUR, ROOT, USERS, Guarded

pytestmark = pytest.mark.server_contract

KEYS = QueueKeys(NAMESPACE)
JOB = "job_3f" + 30 * "0"
TAPE = f"{NAMESPACE}:{{3f}}:{JOB}:tape"
RESULT, REQUEST = TAPE.replace(":tape", ":result"), TAPE.replace(":tape", ":request")
OTHERS_TAPE = f"green:{{3f}}:{JOB}:tape"
NEIGHBOURS = QueueKeys(NEIGHBOUR)
NEIGHBOURS_TAPE = f"{NEIGHBOUR}:{{3f}}:{JOB}:tape"

#: What KEDA's Redis scaler sends: pkg/scalers/redis_scaler.go of github.com/kedacore/keda, in 2.16 and since.
KEDAS_SCRIPTS = (
    """
		local listName = KEYS[1]
		local listType = redis.call('type', listName).ok
		local cmd = {
			zset = 'zcard',
			set = 'scard',
			list = 'llen',
			hash = 'hlen',
			none = 'llen'
		}

		return redis.call(cmd[listType], listName)
	""",
    """
		local listName = KEYS[1]
		local listType = redis.call('type', listName).ok
		if listType == 'zset' then
			return redis.call('zcard', listName)
		elseif listType == 'set' then
			return redis.call('scard', listName)
		elseif listType == 'hash' then
			return redis.call('hlen', listName)
		elseif listType == 'list' or listType == 'none' then
			return redis.call('llen', listName)
		else
			return redis.error_reply('ERR unsupported key type: ' .. listType)
		end
	""",
)

#: What no user but the operator may do.
FORBIDDEN = [
    ("FLUSHALL",), ("FLUSHDB",), ("CONFIG", "GET", "requirepass"), ("CONFIG", "SET", "maxmemory", "1"), ("KEYS", "*"),
    ("SCAN", "0"), ("DBSIZE",), ("RANDOMKEY",), ("SHUTDOWN", "NOSAVE"), ("MONITOR",),
    ("ACL", "LIST"), ("ACL", "SETUSER", "x"), ("CLIENT", "LIST"), ("CLIENT", "KILL", "ID", "1"), ("SCRIPT", "FLUSH"),
    ("FUNCTION", "FLUSH"), ("REPLICAOF", "NO", "ONE"), ("SAVE",), ("BGREWRITEAOF",), ("SLOWLOG", "GET"),
    ("PUBLISH", "rq:pubsub:x", "{}"), ("SUBSCRIBE", "another"), ("PSUBSCRIBE", "*"), ("SWAPDB", "0", "1"),
    ("MIGRATE", "h", "1", TAPE, "0", "1"), ("DEL", TAPE), ("UNLINK", TAPE), ("RENAME", TAPE, "x"), ("COPY", TAPE, "x"),
    ("XDEL", TAPE, "1-0"), ("XTRIM", TAPE, "MAXLEN", "0"), ("DUMP", TAPE), ("GET", OTHERS_TAPE),
    ("XRANGE", OTHERS_TAPE, "-", "+"), ("XADD", OTHERS_TAPE, "9-0", "kind", "end"), ("HGETALL", "green:owners"),
    ("LRANGE", "rq:queue:green-default", "0", "-1"), ("RPUSH", "rq:queue:green-default", JOB),
    ("LPOP", "rq:queue:another"), ("HGETALL", "rq:job:another"), ("SET", "rq:queues", "x"),
    ("DEL", RESULT), ("DEL", REQUEST), ("UNLINK", REQUEST), ("GETDEL", RESULT), ("DEL", KEYS.queue("default")),
    ("LINDEX", NEIGHBOURS.queue("default"), "0"), ("RPUSH", NEIGHBOURS.queue("high"), JOB),
    ("LPOP", NEIGHBOURS.queue("low")), ("LLEN", NEIGHBOURS.queue("default")),
    ("ZADD", f"rq:finished:{NEIGHBOUR}-default", "1", JOB), ("ZADD", f"rq:wip:{NEIGHBOUR}-default", "1", JOB),
    ("ZREM", f"rq:failed:{NEIGHBOUR}-low", JOB), ("ZREM", f"rq:canceled:{NEIGHBOUR}-high", JOB),
    ("ZADD", f"rq:scheduled:{NEIGHBOUR}-high", "1", JOB), ("SREM", f"rq:workers:{NEIGHBOUR}-default", "x"),
    ("XRANGE", NEIGHBOURS_TAPE, "-", "+"), ("PEXPIRE", NEIGHBOURS_TAPE, "0"), ("HLEN", NEIGHBOURS.owners),
    ("CLIENT", "TRACKING", "ON"), ("SCRIPT", "KILL"),
]  # fmt: skip

#: What a worker may, and those who submit may not.
WORKERS_ALONE = [
    ("LPOP", KEYS.queue("default")), ("LREM", KEYS.queue("default"), "0", JOB), ("HSET", KEYS.owners, JOB, "x|1|0"),
    ("HDEL", KEYS.owners, JOB), ("ZADD", KEYS.leases, "1", "x"), ("ZREM", KEYS.open, JOB),
    ("SET", f"{NAMESPACE}:{{3f}}:{JOB}:result", "{}"), ("GET", f"{NAMESPACE}:{{3f}}:{JOB}:request"),
    ("HSET", KEYS.upstreams, "x", "{}"), ("SUBSCRIBE", "rq:pubsub:x"), ("ZRANGE", KEYS.open, "0", "-1"),
    ("LINDEX", KEYS.worker_jobs("x"), "0"),
]  # fmt: skip


#: What a client can destroy or forge, as users.acl and docs/deployment.md say.
STILL_POSSIBLE = [
    ("PEXPIRE", TAPE, "0"), ("PEXPIRE", RESULT, "0"), ("PEXPIRE", REQUEST, "0"),
    ("XADD", TAPE, "MAXLEN", "0", "9-0", "kind", "x"), ("XADD", TAPE, "9-0", "kind", "end", "data", "{}"),
    ("SET", REQUEST, "{}"), ("RPUSH", KEYS.queue("default"), "x"), ("ZADD", KEYS.open, "1", JOB),
    ("HSET", "rq:job:job_of_another_namespace", "data", "x"),
]  # fmt: skip


@pytest.fixture(scope="session")
def simulator() -> Iterator[SimulatorThread]:
    with SimulatorThread() as running:
        yield running


class Life:
    """Clients and workers of the guarded server, each under its own user."""

    def __init__(self, guarded: Guarded, simulator: SimulatorThread, close: ExitStack) -> None:
        self.guarded = guarded
        self._upstreams: dict[str, Any] = {"default": {"base_url": simulator.base_url, "requests_per_minute": 60_000}}
        self._base_url = simulator.base_url
        self._close = close

    def client(self, user: str = "client") -> Client:
        return self._close.enter_context(Client(settings=self.guarded.settings(user)))

    def worker(self) -> EmbeddedWorker:
        its = self.guarded.settings(
            "worker", lease_s=1.0, sweep_s=0.1, settle_s=0.5, log_level="error", upstreams=self._upstreams
        )
        worker = EmbeddedWorker(its)
        self._close.callback(worker.stop_at_once)
        worker.start()
        return worker

    def worker_process(self) -> WorkerProcess:
        worker = WorkerProcess(self.environment("worker"))
        self._close.callback(worker.close)
        return worker

    def environment(self, user: str) -> dict[str, str]:
        short = {
            "TOKENTAPE_LEASE_S": "1",
            "TOKENTAPE_SWEEP_S": "0.1",
            "TOKENTAPE_GRACE_S": "0",
            "TOKENTAPE_LOG_LEVEL": "error",
        }
        return {**os.environ, **self.guarded.login(user), **short, "OPENAI_BASE_URL": self._base_url}


@pytest.fixture
def life(guarded: Guarded, simulator: SimulatorThread) -> Iterator[Life]:
    """One test's. Whatever any user was refused is found at the end, also where the code took it lightly."""
    with guarded.connect("default") as operator:
        operator.flushall()
        operator.acl_log_reset()
        with ExitStack() as close:
            yield Life(guarded, simulator, close)
        refused = [(entry["username"], entry["object"], entry["context"]) for entry in operator.acl_log()]
        assert refused == []


@pytest.mark.parametrize("user", ["client", "service"])
def test_a_jobs_whole_life_needs_no_more(life: Life, user: str) -> None:
    client = life.client(user)
    life.worker()

    job = client.submit(**body("whole life"), idempotency_key=f"k-{user}")
    again = client.submit(**body("whole life"), idempotency_key=f"k-{user}")
    kinds = [entry.kind for entry in client.follow(job.id)]

    assert again.id == job.id
    assert kinds[0] == "queued"
    assert kinds[-1] == "end"
    assert "".join(client.text(job.id)) == job.result().text == expected_text(body("whole life"))
    assert job.status().status == "completed"


def test_jobs_are_cancelled_and_expire(life: Life) -> None:
    client = life.client()
    life.worker()

    endless = client.submit(**body("endless", chunks=100_000, interval_ms=5))
    wait_until(lambda: client.status(endless.id).last_entry_id > "1-1")
    assert endless.cancel()
    late = client.submit(**body("late", chunks=100_000, interval_ms=5), timeout_s=1.0)

    with pytest.raises(JobCancelled):
        endless.result()
    with pytest.raises(JobExpired):
        late.result()
    wait_until(lambda: client.overview().open == 0)


def test_two_followers_share_a_read(life: Life) -> None:
    client = life.client()
    first, second = (client.submit(**body(f"shared {n}", chunks=50, interval_ms=10)) for n in range(2))
    texts = (first.text(), second.text())
    life.worker()

    assert [next(text) for text in texts]  # both are under way in one process
    assert all("".join(text) for text in texts)


def test_a_retry_waits_and_is_promoted(life: Life) -> None:
    client = life.client()
    life.worker()

    job = client.submit(**body("again", fault="status", status=429, retry_after=4, fault_times=1))
    wait_until(lambda: client.status(job.id).status == "waiting")
    assert client.overview().waiting == 1
    client.cancel(job.id)

    wait_until(lambda: client.overview().waiting == 0)


def test_the_streams_of_a_killed_worker_run_again(life: Life) -> None:
    client = life.client()
    requests = [body(f"killed {n}", chunks=200, interval_ms=10) for n in range(5)]
    jobs = list(client.submit_many(requests))
    killed = life.worker_process()
    wait_until(lambda: client.overview().running == 5)
    wait_until(lambda: client.status(jobs[-1].id).last_entry_id > "1-1")

    killed.kill()
    life.worker()

    assert [job.result().text for job in jobs] == [expected_text(request) for request in requests]
    assert {job.status().attempts for job in jobs} == {2}


def test_what_a_drained_worker_puts_back_is_finished_by_another(life: Life) -> None:
    client = life.client()
    first = life.worker_process()
    job = client.submit(**body("drained", chunks=200, interval_ms=10))
    wait_until(lambda: client.status(job.id).last_entry_id > "1-1")

    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    life.worker()

    assert job.result().text == expected_text(body("drained", chunks=200, interval_ms=10))


def test_a_batch_runs_as_the_service(life: Life, tmp_path: Path) -> None:
    life.worker()
    lines = [json.dumps(body(f"line {n}")) for n in range(20)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    command = [sys.executable, "-P", "-m", "tokentape_producer", "batch", "run", "in.jsonl", "--out", "out.jsonl"]

    done = subprocess.run(
        command, cwd=tmp_path, env=life.environment("service"), capture_output=True, text=True, timeout=100, check=False
    )

    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 20


def test_the_scaler_counts_what_waits_and_runs(life: Life) -> None:
    client = life.client()
    list(client.submit_many(body(f"counted {n}") for n in range(3)))
    with life.guarded.connect("default") as operator:
        operator.hset(KEYS.owners, "job_of_a_worker", "x|1|0")

    with life.guarded.connect("scaler") as scaler:
        counted = (*KEYS.queues, *KEYS.all_suspects, KEYS.owners)
        lengths = [{key: scaler.eval(script, 1, key) for key in counted} for script in KEDAS_SCRIPTS]

    expected = {**dict.fromkeys(counted, 0), KEYS.queue("default"): 3, KEYS.owners: 1}
    assert lengths == [expected, expected]


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("command", FORBIDDEN, ids=lambda command: " ".join(command[:2]))
def test_nobody_reaches_beyond_the_work(guarded: Guarded, user: str, command: tuple[str, ...]) -> None:
    with guarded.connect(user) as connection, pytest.raises(NoPermissionError):
        connection.execute_command(*command)


@pytest.mark.parametrize("user", ["client", "service", "scaler", "health"])
@pytest.mark.parametrize("command", WORKERS_ALONE, ids=lambda command: " ".join(command[:2]))
def test_only_workers_do_a_workers_work(guarded: Guarded, user: str, command: tuple[str, ...]) -> None:
    with guarded.connect(user) as connection, pytest.raises(NoPermissionError):
        connection.execute_command(*command)


@pytest.mark.parametrize("user", ["client", "service"])
@pytest.mark.parametrize("command", STILL_POSSIBLE, ids=lambda command: " ".join(command[:3]))
def test_what_a_client_can_destroy_or_forge_is_known(guarded: Guarded, user: str, command: tuple[str, ...]) -> None:
    name, key, *_ = command
    with guarded.connect("default") as operator, guarded.connect(user) as connection:
        operator.flushall()
        operator.xadd(TAPE, {"kind": "queued", "data": "{}"}, id="0-1")
        operator.mset({RESULT: "an answer", REQUEST: "a request"})

        connection.execute_command(*command)

        if name == "PEXPIRE":
            assert not operator.exists(key)
        if "MAXLEN" in command:
            assert operator.xlen(key) == 0


@pytest.mark.parametrize("user", ["client", "worker", "service"])
def test_a_script_of_ones_own_gives_no_more_rights(guarded: Guarded, user: str) -> None:
    with guarded.connect("default") as operator:
        operator.delete(TAPE)
        operator.xadd(TAPE, {"kind": "queued", "data": "{}"}, id="0-1")
        operator.set("green:secret", "theirs")
    with guarded.connect(user) as connection:
        delete = connection.script_load("return redis.call('DEL', KEYS[1])")
        read = connection.script_load("return redis.call('GET', 'green:secret')")

        for sha, keys in ((delete, [TAPE]), (read, []), (read, ["green:secret"])):
            with pytest.raises(redis.ResponseError, match=r"(?i)permission|can't access|NOPERM"):
                connection.evalsha(sha, len(keys), *keys)


@pytest.mark.parametrize("script", ["return redis.call('DEL', KEYS[1])", "return redis.call('LPOP', KEYS[1])"])
def test_the_scalers_script_may_only_count(guarded: Guarded, script: str) -> None:
    with (
        guarded.connect("scaler") as connection,
        pytest.raises(redis.ResponseError, match=r"(?i)permission|can't run|NOPERM"),
    ):
        connection.eval(script, 1, KEYS.queue("default"))


def test_a_probe_may_only_ask_whether_the_server_answers(guarded: Guarded) -> None:
    with guarded.connect("health") as connection:
        assert connection.ping()
        for command in (("CLIENT", "ID"), ("ECHO", "x"), ("TIME",), ("LLEN", KEYS.queue("default"))):
            with pytest.raises(NoPermissionError):
                connection.execute_command(*command)


def test_nobody_comes_in_without_a_password(guarded: Guarded) -> None:
    for user in ("default", *(f"{NAMESPACE}-{user}" for user in USERS)):
        url = guarded.url.replace("redis://", f"redis://{user}:wrong@")
        with redis.Redis.from_url(url) as connection, pytest.raises(AuthenticationError):
            connection.ping()
    with redis.Redis.from_url(guarded.url) as connection, pytest.raises(AuthenticationError):
        connection.ping()


def render(namespaces: str, passwords: Path) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "deploy/redis/render"), namespaces, str(passwords)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def hashed(password: str) -> str:
    return f" #{hashlib.sha256(password.encode()).hexdigest()}"


@pytest.mark.parametrize("content", [None, "", " \n\t\r\n"], ids=["missing", "empty", "blank"])
def test_a_user_without_a_password_cannot_log_in(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "default").write_text("k-secret")
    if content is not None:
        for user in USERS:
            (tmp_path / f"blue-{user}").write_text(content)

    done = render("blue", tmp_path)
    lines = {line.split()[1]: line for line in done.stdout.splitlines()}

    assert done.returncode == 0
    assert set(lines) == {"default", *(f"blue-{user}" for user in USERS)}
    assert lines.pop("default").endswith(hashed("k-secret"))
    assert not re.search("#|>|nopass", "".join(lines.values()))


def test_several_namespaces_share_one_operator(tmp_path: Path) -> None:
    (tmp_path / "default").write_text("k-default\n")
    (tmp_path / "blue-eu-client").write_text("\t k secret \r\n")

    done = render("blue,blue-eu,green", tmp_path)
    lines = done.stdout.splitlines()
    names = [line.split()[1] for line in lines]

    assert names.count("default") == 1
    assert len(names) == len(set(names)) == 1 + 3 * len(USERS)
    assert {f"{namespace}-{user}" for namespace in ("blue", "blue-eu", "green") for user in USERS} < set(names)
    assert [line.split()[1] for line in lines if line.endswith(hashed("k secret"))] == ["blue-eu-client"]
    assert "tokentape" not in done.stdout


@pytest.mark.parametrize("content", [None, "", " \n\t\r\n"], ids=["missing", "empty", "blank"])
def test_no_file_is_rendered_that_leaves_the_server_open(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "default").write_text(content)

    done = render("blue", tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""


@pytest.mark.parametrize("namespaces", ["", ",", "blue,", ",blue", "blue,,green", "blue green", "blue/", "*"])
def test_what_is_no_namespace_is_refused(tmp_path: Path, namespaces: str) -> None:
    (tmp_path / "default").write_text("k-secret")

    done = render(namespaces, tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""
