"""`tokentape result`, `cancel` and `status`."""

from __future__ import annotations

import json

import pytest

from tokentape import Client, JobView, Overview
from tokentape.job import new_job_id
from tokentape.simulator import expected_completion, expected_text

from .conftest import Environment, Run, body, wait_until


def test_result_waits_and_prints_the_text(run: Run, client: Client) -> None:
    request = body("Tell me", chunks=40, interval_ms=5)
    job = client.submit(request=request)

    outcome = run("result", job.id)

    assert (outcome.code, outcome.out, outcome.err) == (0, expected_text(request) + "\n", "")


def test_result_as_json_is_the_whole_completion(run: Run, client: Client) -> None:
    request = body("Tell me all", chunks=4)
    job = client.submit(request=request)

    outcome = run("result", job.id, "--json")

    given, expected = json.loads(outcome.out), expected_completion(request)
    assert given["choices"] == expected["choices"]
    assert {name: given[name] for name in ("id", "object", "model", "created")} == {
        name: expected[name] for name in ("id", "object", "model", "created")
    }
    assert given["usage"]["total_tokens"] == expected["usage"]["total_tokens"]


def test_result_of_an_unfinished_job_is_exit_code_4_when_the_wait_is_over(
    run: Run, idle: Environment, idle_client: Client
) -> None:
    job = idle_client.submit(request=body("Later"))

    outcome = run("result", job.id, "--wait", "0.05", env=idle)

    assert outcome.code == 4
    assert "did not end within 0.05 s" in outcome.err


def test_result_of_a_failed_job_is_exit_code_1_with_its_error(run: Run, client: Client) -> None:
    job = client.submit(request=body("Refuse", fault="status", status=400))

    outcome = run("result", job.id, "--json")

    error = json.loads(outcome.err)["error"]
    assert outcome.code == 1
    assert outcome.out == ""
    assert (error["type"], error["exit_code"], error["job_id"]) == ("JobFailed", 1, job.id)
    assert (error["job_error"]["type"], error["job_error"]["upstream_status"]) == ("invalid_request", 400)


@pytest.mark.usefixtures("worker")
def test_result_of_a_job_that_never_was_is_exit_code_3(run: Run) -> None:
    job_id = new_job_id()

    outcome = run("result", job_id, "--json")

    assert outcome.code == 3
    assert json.loads(outcome.err)["error"]["job_id"] == job_id


def test_cancel_says_what_it_did(run: Run, idle: Environment, idle_client: Client) -> None:
    job = idle_client.submit(request=body("Never mind"))

    first = run("cancel", job.id, env=idle)
    second = run("cancel", job.id, env=idle)

    assert (first.code, first.out) == (0, f"{job.id} cancelled\n")
    assert (second.code, second.out) == (0, f"{job.id} had ended already\n")


def test_cancel_as_json(run: Run, idle: Environment, idle_client: Client) -> None:
    job = idle_client.submit(request=body("Never mind"))

    first = run("cancel", job.id, "--json", env=idle)
    second = run("cancel", job.id, "--json", env=idle)

    assert json.loads(first.out) == {"id": job.id, "cancelled": True}
    assert json.loads(second.out) == {"id": job.id, "cancelled": False}


def test_result_of_a_cancelled_job_is_exit_code_1(run: Run, idle: Environment, idle_client: Client) -> None:
    job = idle_client.submit(request=body("Never mind"))
    job.cancel()

    outcome = run("result", job.id, env=idle)

    assert outcome.code == 1
    assert f"{job.id} cancelled" in outcome.err


@pytest.mark.usefixtures("worker")
def test_cancel_of_a_job_that_never_was_is_exit_code_3(run: Run) -> None:
    outcome = run("cancel", new_job_id())

    assert outcome.code == 3


def test_status_of_a_job_as_json_is_the_job_object(run: Run, client: Client) -> None:
    job = client.submit(request=body("Status"), metadata={"team": "search"})
    job.result()

    outcome = run("status", job.id, "--json")

    assert JobView.model_validate_json(outcome.out) == job.status()
    assert list(json.loads(outcome.out)) == list(JobView.model_fields)


def test_status_of_a_job_is_a_table(run: Run, client: Client) -> None:
    job = client.submit(request=body("Status", fault="status", status=400), metadata={"team": "search"})
    run("result", job.id)

    outcome = run("status", job.id)

    rows = {line[: line.index("  ")]: line[line.index("  ") :].strip() for line in outcome.out.splitlines()}
    assert outcome.code == 0
    assert (rows["job"], rows["status"], rows["metadata"]) == (job.id, "failed", "team=search")
    assert rows["error"].startswith("invalid_request: ")
    assert rows["error"].endswith("(a retry will not help)")


@pytest.mark.usefixtures("worker")
def test_status_of_a_job_that_never_was_is_exit_code_3(run: Run) -> None:
    outcome = run("status", new_job_id())

    assert outcome.code == 3


def test_status_without_a_job_shows_queues_and_workers(run: Run, client: Client) -> None:
    wait_until(lambda: client.overview().workers[0].jobs == 0)

    table = run("status")
    facts = run("status", "--json")

    overview = Overview.model_validate_json(facts.out)
    assert overview.workers[0].name in table.out
    assert "holds for" in table.out
    assert table.out.startswith("queued ")


def test_status_says_that_there_is_no_worker(run: Run, idle: Environment, idle_client: Client) -> None:
    idle_client.submit(request=body("Waiting"), priority="high")

    table = run("status", env=idle)
    facts = run("status", "--json", env=idle)

    assert table.code == 0
    assert "none: nothing runs until one is started" in table.out
    assert "1 high, 0 default, 0 low; the oldest for" in table.out
    assert json.loads(facts.out)["workers"] == []
    assert json.loads(facts.out)["queued"] == {"high": 1, "default": 0, "low": 0}
