"""`tokentape doctor` on a healthy stack, and on broken ones: what it finds, and what it says to do."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from tokentape import Client, doctor_facts
from tokentape.doctor_facts import UpstreamFacts
from tokentape.embedded import EmbeddedServer
from tokentape.settings import Upstream
from tokentape.simulator import SimulatorThread

from .conftest import Environment, Run, body, settings_of, wait_until

KEY = f"key-{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def own_server(server_binary: Path | None) -> Iterator[EmbeddedServer]:
    """A server that a test may break, with a password; as a mature installation would have it."""
    config = {"appendonly": "yes", "maxmemory": "200mb", "maxmemory-policy": "noeviction"}
    with EmbeddedServer(password=True, config=config, binary=server_binary) as server:
        yield server


@pytest.fixture
def own(own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Environment:
    monkeypatch.delenv("TOKENTAPE_NAMESPACE", raising=False)
    return {"TOKENTAPE_REDIS_URL": own_server.url, "TOKENTAPE_NAMESPACE": f"t{uuid.uuid4().hex[:12]}"}


@pytest.fixture(scope="module")
def closed() -> Iterator[SimulatorThread]:
    """An API that wants a key."""
    with SimulatorThread(api_key=KEY, models=("sim-1",)) as simulator:
        yield simulator


def configured(tmp_path: Path, base_url: str, **fields: str) -> Environment:
    """A file with one upstream."""
    lines = [f'{name} = "{value}"' for name, value in {"base_url": base_url, **fields}.items()]
    path = tmp_path / "tokentape.toml"
    path.write_text("\n".join(["[upstreams.main]", 'models = ["sim-1"]', *lines]))
    return {"TOKENTAPE_CONFIG": str(path)}


def states(run: Run, env: Environment) -> tuple[int, dict[str, tuple[str, str]]]:
    """-> exit code, {check: (state, message and mend)}"""
    outcome = run("doctor", "--json", env=env)
    told = json.loads(outcome.out)
    assert told["ok"] == (outcome.code == 0)
    worst = sorted(told["findings"], key=lambda one: ["skipped", "ok", "warning", "error"].index(one["state"]))
    return outcome.code, {
        one["check"]: (one["state"], f"{one['message']} {one['mend'] or ''}".strip()) for one in worst
    }


def registered(env: Environment) -> bool:
    """Whether a worker has said what it serves, which it does after its lease stands."""
    ours = {name: value for name, value in env.items() if name.startswith("TOKENTAPE_")}
    return any(worker.upstreams for worker in doctor_facts.gather(ours).workers or ())


def test_a_healthy_stack(run: Run, own: Environment, closed: SimulatorThread, tmp_path: Path) -> None:
    env = own | configured(tmp_path, closed.base_url, api_key_env="SOME_KEY") | {"SOME_KEY": KEY}
    its = {**os.environ, **env, "TOKENTAPE_LOG_LEVEL": "error"}
    process = subprocess.Popen([sys.executable, "-P", "-m", "tokentape_worker"], env=its)
    try:
        with Client(settings=settings_of(own)) as client:
            wait_until(lambda: client.overview().workers)
            client.submit(**body("healthy")).result()
        outcome = run("doctor", env=env)
        _, found = states(run, env)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    assert outcome.code == 0
    assert outcome.out.endswith("all is well\n")
    assert {state for state, _ in found.values()} == {"ok"}
    assert found["workers"][1].startswith("1 is alive")
    assert found["upstream main"][1].endswith("takes the key")
    assert "1 newest" in found["tapes"][1]
    assert KEY not in outcome.out + outcome.err


def test_workers_that_have_another_configuration(
    run: Run, environment: Environment, worker: None, simulator: SimulatorThread, tmp_path: Path
) -> None:
    wait_until(lambda: registered(environment))
    code, found = states(run, configured(tmp_path, simulator.base_url))
    assert code == 0
    assert found["workers"] == (
        "warning",
        (
            "none serves the upstream 'main' that is configured here"
            " give the workers the same configuration, and start them again"
        ),
    )


def test_a_key_in_a_developers_shell_is_no_configuration(
    run: Run, own: Environment, simulator: SimulatorThread, tmp_path: Path
) -> None:
    its = {**os.environ, **own, **configured(tmp_path, simulator.base_url), "TOKENTAPE_LOG_LEVEL": "error"}
    process = subprocess.Popen([sys.executable, "-P", "-m", "tokentape_worker"], env=its)
    try:
        wait_until(lambda: registered(own))
        code, found = states(run, own | {"OPENAI_API_KEY": "a-key-of-somebody"})
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    assert code == 0
    assert found["workers"][0] == "ok"
    assert found["upstreams"] == ("skipped", "none is configured in this environment; the workers serve main")


def test_a_key_is_tried_where_nothing_says_that_workers_have_another(
    idle: Environment, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def probe(upstreams: Mapping[str, Upstream]) -> list[UpstreamFacts]:
        asked.extend(upstreams)
        return [UpstreamFacts("default", "api.test", key="refused")]

    monkeypatch.setattr(doctor_facts, "entry_points", lambda **_: [SimpleNamespace(load=lambda: probe)])
    env = {"TOKENTAPE_REDIS_URL": environment["TOKENTAPE_REDIS_URL"], **idle}

    facts = doctor_facts.gather(env | {"OPENAI_API_KEY": "a-key"})

    assert asked == ["default"]
    assert facts.configured == ()
    assert doctor_facts.gather(env).upstreams is None
    assert doctor_facts.gather(env | {"OPENAI_BASE_URL": "http://api.test/v1"}).configured == ("default",)


def test_nothing_listens(run: Run, idle: Environment) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        port = taken.getsockname()[1]
        outcome = run("doctor", env={"TOKENTAPE_REDIS_URL": f"redis://:a-secret@127.0.0.1:{port}/0"})
    assert outcome.code == 1
    assert "nothing listens there" in outcome.out
    assert "from TOKENTAPE_REDIS_URL" in outcome.out
    assert "→ start the server" in outcome.out
    assert "skipped  workers" in outcome.out
    assert "a-secret" not in outcome.out + outcome.err


def test_a_socket_without_permission(run: Run, idle: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", address)

    monkeypatch.setattr(socket, "socket", Refusing)  # root, as in CI, has every permission
    code, found = states(run, idle | {"TOKENTAPE_REDIS_URL": "unix:///run/redis/redis.sock"})
    assert code == 1
    assert found["redis_url"][0] == "error"
    assert "this user may not connect there" in found["redis_url"][1]
    assert "unixsocketperm" in found["redis_url"][1]


def test_a_wrong_password(run: Run, own: Environment) -> None:
    address = own["TOKENTAPE_REDIS_URL"].rpartition("@")[2]
    code, found = states(run, own | {"TOKENTAPE_REDIS_URL": f"redis://:wrong@{address}"})
    assert code == 1
    assert found["redis_url"][0] == "error"
    assert "another user or password" in found["redis_url"][1]
    assert "USER:PASSWORD@" in found["redis_url"][1]


def test_no_redis_but_something_else(run: Run, idle: Environment, simulator: SimulatorThread) -> None:
    address = simulator.base_url.split("/")[2]
    code, found = states(run, idle | {"TOKENTAPE_REDIS_URL": f"redis://{address}/0"})
    assert code == 1
    assert found["redis_url"][0] == "error"


def test_a_server_that_evicts(run: Run, own: Environment) -> None:
    with redis.Redis.from_url(own["TOKENTAPE_REDIS_URL"]) as server:
        server.config_set("maxmemory-policy", "allkeys-lru")
        code, found = states(run, own)
        server.config_set("maxmemory-policy", "noeviction")
        mended, then = states(run, own)
    assert (code, mended) == (1, 0)
    assert found["redis_url memory"][0] == "error"
    assert "allkeys-lru" in found["redis_url memory"][1]
    assert then["redis_url memory"][0] == then["redis_url persistence"][0] == "ok"


@pytest.mark.parametrize(("save", "state"), [("3600 1", "error"), ("", "warning")])
def test_a_snapshot_that_fails(run: Run, own_server: EmbeddedServer, own: Environment, save: str, state: str) -> None:
    """An error exactly where the server refuses writes for it."""
    in_the_way = own_server.log_path.parent / "dump.rdb"
    in_the_way.unlink(missing_ok=True)
    (in_the_way / "file").mkdir(parents=True)
    with redis.Redis.from_url(own_server.url, decode_responses=True) as server:
        server.config_set("save", save)
        try:
            server.bgsave()
            wait_until(lambda: server.info("persistence")["rdb_last_bgsave_status"] == "err")
            code, found = states(run, own)
            refused = pytest.raises(redis.ResponseError, match="MISCONF") if code else nullcontext()
            with refused:
                server.set("a", "b")
        finally:
            server.config_set("save", "")
            shutil.rmtree(in_the_way)
            server.bgsave()
            wait_until(lambda: server.info("persistence")["rdb_last_bgsave_status"] == "ok")
    assert found["redis_url persistence"][0] == state
    assert code == (state == "error")


def test_jobs_wait_and_no_worker_lives(run: Run, idle: Environment, idle_client: Client) -> None:
    assert states(run, idle)[1]["workers"][0] == "warning"
    idle_client.submit(**body("waits"))
    code, found = states(run, idle)
    assert code == 1
    assert found["workers"][0] == "error"
    assert "none is alive, and 1 job waits" in found["workers"][1]
    assert "tokentape worker" in found["workers"][1]
    assert found["tapes"][0] == "ok"


@pytest.mark.parametrize("key", ["wrong-key-wrong-key", None])
def test_a_key_that_does_not_hold(
    run: Run, idle: Environment, closed: SimulatorThread, tmp_path: Path, key: str | None
) -> None:
    env = idle | configured(tmp_path, closed.base_url, **({"api_key_env": "SOME_KEY"} if key else {}))
    outcome = run("doctor", env=env | {"SOME_KEY": key or ""})
    assert outcome.code == 1
    assert ("refuses the key" if key else "has no key") in outcome.out
    assert "api_key_env or api_key_file" in outcome.out
    assert not key or key not in outcome.out + outcome.err


def test_a_key_that_is_not_there(run: Run, idle: Environment, closed: SimulatorThread, tmp_path: Path) -> None:
    code, found = states(run, idle | configured(tmp_path, closed.base_url, api_key_env="NO_SUCH_VARIABLE"))
    assert code == 1
    assert "NO_SUCH_VARIABLE" in found["upstream main"][1]


def test_an_upstream_that_shows_its_list_to_everybody(run: Run, idle: Environment, tmp_path: Path) -> None:
    with SimulatorThread(models=("sim-1",)) as simulator:
        env = idle | configured(tmp_path, simulator.base_url, api_key_env="SOME_KEY") | {"SOME_KEY": KEY}
        code, found = states(run, env)
    assert code == 0
    assert "the key is not checked" in found["upstream main"][1]


def test_an_upstream_that_is_not_there(run: Run, idle: Environment, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        code, found = states(run, idle | configured(tmp_path, f"http://127.0.0.1:{taken.getsockname()[1]}/v1"))
    assert code == 1
    assert "was not reached: the connection was refused" in found["upstream main"][1]


def test_a_base_url_without_its_version(run: Run, idle: Environment, closed: SimulatorThread, tmp_path: Path) -> None:
    """Every job would get the 404 that the list of models gets."""
    base_url = closed.base_url.removesuffix("/v1")
    code, found = states(run, idle | configured(tmp_path, base_url, api_key_env="SOME_KEY") | {"SOME_KEY": KEY})
    assert code == 0
    assert found["upstream main"][0] == "warning"
    assert "neither the path nor the key could be checked: HTTP 404 for /models" in found["upstream main"][1]
    assert "most end in /v1" in found["upstream main"][1]


def test_a_worker_does_not_start_to_fail_every_job(run: Run, idle: Environment, tmp_path: Path) -> None:
    missing = tmp_path / "authority.pem"
    env = idle | configured(tmp_path, "https://api.test/v1", ca_file=str(missing))
    outcome = run("worker", "--burst", env=env)
    assert outcome.code == 2
    assert outcome.err.endswith(
        f"error: upstream 'main': ca_file: {missing} cannot be read (No such file or directory)\n"
    )
    assert run("status", env=env).code == 0  # a client needs no certificates


def test_certificates_that_are_missing_hide_no_other_upstream(
    run: Run, idle: Environment, closed: SimulatorThread, tmp_path: Path
) -> None:
    env = idle | configured(tmp_path, closed.base_url, ca_file=str(tmp_path / "authority.pem"))
    with Path(env["TOKENTAPE_CONFIG"]).open("a") as file:
        file.write(f'\n[upstreams.other]\nbase_url = "{closed.base_url}"\napi_key_env = "SOME_KEY"\n')
    code, found = states(run, env | {"SOME_KEY": KEY})
    assert code == 1
    assert found["upstream main"][0] == "error"
    assert "authority.pem cannot be read" in found["upstream main"][1]
    assert "does not start" in found["upstream main"][1]
    assert found["upstream other"][0] == "ok"


def test_words_of_an_upstream_do_not_steer_the_terminal(
    run: Run, idle: Environment, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "no\x1b]0;pwn\x07 \x1b[2J\x9b31m\u202e way"
    facts = UpstreamFacts("default", "api.test", key="refused", key_note=said, unlisted=(said,))
    monkeypatch.setattr(doctor_facts, "entry_points", lambda **_: [SimpleNamespace(load=lambda: lambda _: [facts])])
    env = idle | {"TOKENTAPE_REDIS_URL": environment["TOKENTAPE_REDIS_URL"], "OPENAI_BASE_URL": "http://api.test/v1"}
    for options in ([], ["--json"]):
        outcome = run("doctor", *options, env=env)
        assert "pwn" in outcome.out
        assert all(char.isprintable() for char in outcome.out.replace("\n", ""))


def test_a_model_that_is_not_listed(run: Run, idle: Environment, tmp_path: Path) -> None:
    with SimulatorThread(models=("other-1",)) as simulator:
        code, found = states(run, idle | configured(tmp_path, simulator.base_url))
    assert code == 0
    assert found["upstream main"][0] == "warning"
    assert "'sim-1'" in found["upstream main"][1]


def test_a_wrong_setting(run: Run) -> None:
    code, found = states(run, {"TOKENTAPE_LEASES": "5"})
    assert code == 1
    assert found["settings"][0] == "error"
    assert "TOKENTAPE_LEASE_S" in found["settings"][1]
    assert found["everything else"][0] == "skipped"


def test_a_user_who_may_not_ask_the_server(run: Run, own: Environment) -> None:
    with redis.Redis.from_url(own["TOKENTAPE_REDIS_URL"]) as server:
        server.execute_command("ACL", "SETUSER", "narrow", "on", "nopass", "~*", "&*", "+@all", "-info", "-config")
        address = own["TOKENTAPE_REDIS_URL"].rpartition("@")[2]
        code, found = states(run, own | {"TOKENTAPE_REDIS_URL": f"redis://narrow:any@{address}"})
        server.execute_command("ACL", "DELUSER", "narrow")
    assert code == 0
    assert found["redis_url server"][0] == "skipped"
    assert "+info" in found["redis_url server"][1]


def test_a_user_who_may_not_see_the_workers(run: Run, own: Environment) -> None:
    with redis.Redis.from_url(own["TOKENTAPE_REDIS_URL"]) as server:
        server.execute_command("ACL", "SETUSER", "narrow", "on", "nopass", "~*", "&*", "+@all", "-zrange")
        address = own["TOKENTAPE_REDIS_URL"].rpartition("@")[2]
        code, found = states(run, own | {"TOKENTAPE_REDIS_URL": f"redis://narrow:any@{address}"})
        server.execute_command("ACL", "DELUSER", "narrow")
    assert code == 0
    assert found["workers"][0] == "skipped"
    assert "operator" in found["workers"][1]
    assert found["redis_url"][0] == "ok"


def test_a_clients_user_sees_that_workers_live(
    run: Run, environment: Environment, worker: None, valkey: EmbeddedServer
) -> None:
    """What deploy/redis/users.acl lets it see, and that the rest is not passed over."""
    with redis.Redis.from_url(valkey.url) as server:
        rules = ("~*", "&*", "+@all", "-hmget", "-zrevrange", "-info")
        server.execute_command("ACL", "SETUSER", "narrow", "on", "nopass", *rules)
        address = valkey.url.rpartition("/")[0].rpartition("@")[2].removeprefix("redis://")
        code, found = states(run, {"TOKENTAPE_REDIS_URL": f"redis://narrow:any@{address}/0"})
        server.execute_command("ACL", "DELUSER", "narrow")
    assert code == 0
    assert found["workers"][0] == "ok"
    assert found["tapes"][0] == "skipped"
    assert "operator" in found["tapes"][1]


def test_a_server_that_goes_away_meanwhile_is_one_finding(
    run: Run, idle: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise redis.ConnectionError("Connection closed by server.")

    monkeypatch.setattr(doctor_facts, "_formats", away)
    outcome = run("doctor", "--json", env=idle)
    told = [one for one in json.loads(outcome.out)["findings"] if one["check"] == "redis_url"]
    assert [one["state"] for one in told] == ["error"]
    assert "it closes the connection" in told[0]["message"]
