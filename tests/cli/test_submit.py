"""`tokentape submit`: what it sends, what it prints, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis

from tokentape import Client
from tokentape.job import is_job_id
from tokentape.simulator import expected_text
from tokentape.tape import Tape

from .conftest import Environment, Run, body, unique


def stored_request(client: Client, job_id: str) -> dict[str, Any]:
    with redis.Redis.from_url(client.settings.redis_url) as server:
        stored = server.get(Tape(client.settings.namespace, job_id).request_key)
    assert isinstance(stored, bytes)
    request: dict[str, Any] = json.loads(stored)
    return request


def test_the_id_stands_alone_on_stdout(run: Run, client: Client) -> None:
    outcome = run("submit", "Hello")

    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out.endswith("\n")
    assert is_job_id(outcome.out.strip())
    assert client.result(outcome.out.strip()).text


def test_json_gives_an_object_with_the_id(run: Run, idle: Environment) -> None:
    outcome = run("submit", "Hello", "--json", env=idle)

    assert list(json.loads(outcome.out)) == ["id"]


def test_a_prompt_becomes_a_request_for_the_default_model(run: Run, idle: Environment, idle_client: Client) -> None:
    outcome = run("submit", "Grüße, 世界", env=idle)

    assert stored_request(idle_client, outcome.out.strip()) == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "Grüße, 世界"}],
    }


def test_a_dash_reads_the_prompt_from_stdin_as_it_is(run: Run, idle: Environment, idle_client: Client) -> None:
    outcome = run("submit", "-", stdin="two\nlines: שלום\n".encode(), env=idle)

    request = stored_request(idle_client, outcome.out.strip())
    assert request["messages"][0]["content"] == "two\nlines: שלום\n"


def test_options_and_parameters_reach_the_job(run: Run, idle: Environment, idle_client: Client) -> None:
    outcome = run(
        *("submit", "Hi", "--model", "m-1", "--priority", "high", "--tenant", "t-1", "--timeout", "90"),
        *("--metadata", "team=search", "--metadata", "note=a=b", "--param", "temperature=0", "--param", 'stop=["."]'),
        env=idle,
    )

    job_id = outcome.out.strip()
    view = idle_client.status(job_id)
    assert (view.model, view.priority, view.metadata) == ("m-1", "high", {"team": "search", "note": "a=b"})
    assert view.deadline_at - view.created_at == pytest.approx(90)
    request = stored_request(idle_client, job_id)
    assert (request["temperature"], request["stop"]) == (0, ["."])


def test_a_whole_request_comes_from_a_file_or_from_stdin(
    run: Run, idle: Environment, idle_client: Client, tmp_path: Path
) -> None:
    request = body("From a file", chunks=3)
    file = tmp_path / "body.json"
    file.write_text(json.dumps(request))

    from_file = run("submit", "--request", str(file), env=idle)
    from_stdin = run("submit", "--request", "-", stdin=json.dumps(request).encode(), env=idle)

    assert stored_request(idle_client, from_file.out.strip()) == request
    assert stored_request(idle_client, from_stdin.out.strip()) == request


def test_the_same_key_is_the_same_job(run: Run, idle: Environment) -> None:
    first = run("submit", "Once", "--key", "k-1", env=idle)
    second = run("submit", "Once", "--key", "k-1", env=idle)
    of_another = run("submit", "Once", "--key", "k-1", "--tenant", "b", env=idle)

    assert first.out == second.out
    assert of_another.out != first.out


def test_the_same_key_with_another_prompt_is_refused(run: Run, idle: Environment) -> None:
    first = run("submit", "Once", "--key", "k-2", env=idle)

    outcome = run("submit", "Twice", "--key", "k-2", env=idle)

    assert outcome.code == 2
    assert outcome.out == ""
    assert first.out.strip() in outcome.err


@pytest.mark.usefixtures("worker")
def test_follow_streams_the_text_to_stdout_and_tells_the_id_on_stderr(run: Run) -> None:
    request = body("Follow me", chunks=30)

    outcome = run("submit", "--request", "-", "--follow", stdin=json.dumps(request).encode())

    assert outcome.code == 0
    assert outcome.out == expected_text(request) + "\n"
    assert is_job_id(outcome.err.strip())


@pytest.mark.usefixtures("worker")
def test_follow_says_on_stderr_that_an_attempt_starts_over(run: Run) -> None:
    request = body(unique("Again"), chunks=10, fault="disconnect", fault_times=1)

    outcome = run("submit", "--request", "-", "--follow", stdin=json.dumps(request).encode())

    whole = expected_text(request)
    void, answer = outcome.out.splitlines()
    assert outcome.code == 0
    assert answer == whole
    assert void != whole
    assert whole.startswith(void)
    assert "attempt 2 starts over" in outcome.err


@pytest.mark.usefixtures("worker")
def test_follow_with_json_gives_entries_and_the_id_on_stderr(run: Run) -> None:
    outcome = run("submit", "Hello", "--follow", "--json")

    entries = [json.loads(line) for line in outcome.out.splitlines()]
    assert [entry["id"] for entry in entries[:3]] == ["0-1", "1-0", "1-1"]
    assert entries[-1]["data"]["status"] == "completed"
    assert is_job_id(json.loads(outcome.err)["id"])


@pytest.mark.usefixtures("worker")
def test_a_job_that_fails_while_it_is_followed_is_exit_code_1(run: Run) -> None:
    request = body("No", fault="status", status=400)

    outcome = run("submit", "--request", "-", "--follow", stdin=json.dumps(request).encode())

    assert outcome.code == 1
    assert outcome.out == ""
    assert "failed: invalid_request" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "PROMPT"),
        (("Hi", "--param", "temperature"), "temperature: expected name=json"),
        (("Hi", "--param", "stop=END"), "'stop=\"END\"'"),
        (("Hi", "--param", "messages=[]"), "--request"),
        (("Hi", "--param", "n=0"), "n: "),
        (("Hi", "--metadata", "team"), "expected name=value"),
        (("Hi", "--priority", "urgent"), "'urgent'"),
        (("Hi", "--upstream", "nowhere"), "no upstream 'nowhere'"),
        (("Hi", "--upstream", "https://example.org"), "never an address"),
        (("Hi", "--timeout", "0"), "timeout_s: "),
        (("Hi", "--model", ""), "model: "),
        (("Hi", "--request", "-"), "--request is a whole body"),
        (("--request", "/nowhere/body.json"), "/nowhere/body.json"),
        (("--request", "-"), "request: not JSON"),
        (("-",), "stdin: is not UTF-8 at byte 0"),
        (("Hi", "--no-such-option"), "--no-such-option"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_enqueued(
    run: Run, idle: Environment, idle_client: Client, arguments: tuple[str, ...], said: str
) -> None:
    outcome = run("submit", *arguments, stdin=b"\xff", env=idle)

    assert outcome.code == 2
    assert outcome.out == ""
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert idle_client.overview().open == 0
