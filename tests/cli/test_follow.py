"""`tokentape follow`: the formats, the cursor, the end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokentape import Client
from tokentape.chunk import ChatCompletionChunk
from tokentape.completion import fold
from tokentape.job import new_job_id
from tokentape.simulator import expected_text

from .conftest import Environment, Run, body, unique


@pytest.fixture
def answered(client: Client) -> tuple[str, dict[str, Any]]:
    """A job that has ended, and its request."""
    request = body("What is there?", chunks=12)
    job = client.submit(request=request)
    job.result()
    return job.id, request


@pytest.fixture
def restarted(client: Client) -> tuple[str, dict[str, Any]]:
    """A job that completed in its second attempt."""
    request = body(unique("What is there again?"), chunks=12, fault="disconnect", fault_times=1)
    job = client.submit(request=request)
    job.result()
    return job.id, request


def test_text_is_the_whole_answer(run: Run, answered: tuple[str, dict[str, Any]]) -> None:
    job_id, request = answered

    outcome = run("follow", job_id)

    assert (outcome.code, outcome.out, outcome.err) == (0, expected_text(request) + "\n", "")


def test_text_begins_with_the_newest_attempt(run: Run, restarted: tuple[str, dict[str, Any]]) -> None:
    job_id, request = restarted

    outcome = run("follow", job_id)

    assert (outcome.out, outcome.err) == (expected_text(request) + "\n", "")


def test_text_from_the_start_shows_every_attempt(run: Run, restarted: tuple[str, dict[str, Any]]) -> None:
    job_id, request = restarted

    outcome = run("follow", job_id, "--after", "0-0")

    assert outcome.out.splitlines()[1:] == [expected_text(request)]
    assert "attempt 2 starts over" in outcome.err


def test_a_reader_that_resumes_in_a_lost_attempt_hears_of_the_restart(
    run: Run, restarted: tuple[str, dict[str, Any]]
) -> None:
    job_id, request = restarted
    entries = [json.loads(line) for line in run("follow", job_id, "--json").out.splitlines()]
    last_of_first = [entry["id"] for entry in entries if entry["id"].startswith("1-")][-1]

    outcome = run("follow", job_id, "--after", last_of_first)

    assert outcome.out == expected_text(request) + "\n"
    assert "attempt 2 starts over" in outcome.err


def test_chunks_are_one_a_line_as_they_stand_on_the_tape(
    run: Run, client: Client, answered: tuple[str, dict[str, Any]]
) -> None:
    job_id, request = answered

    lines = run("follow", job_id, "--format", "chunks").out.splitlines()

    assert lines == [entry.raw.decode() for entry in client.follow(job_id) if entry.kind == "chunk"]
    completion = fold(ChatCompletionChunk.model_validate_json(line) for line in lines)
    assert completion.text == expected_text(request)


def test_entries_are_objects_with_id_kind_and_data(run: Run, answered: tuple[str, dict[str, Any]]) -> None:
    job_id, _ = answered

    by_format = run("follow", job_id, "--format", "entries")
    by_json = run("follow", job_id, "--json")

    entries = [json.loads(line) for line in by_format.out.splitlines()]
    assert all(list(entry) == ["id", "kind", "data"] for entry in entries)
    assert [entry["kind"] for entry in entries[:3]] == ["queued", "attempt", "chunk"]
    assert entries[-1]["kind"] == "end"
    assert by_json.out == by_format.out


@pytest.mark.parametrize("format_", ["text", "chunks", "entries"])
def test_what_was_read_and_what_comes_after_the_cursor_are_the_whole(
    run: Run, answered: tuple[str, dict[str, Any]], format_: str
) -> None:
    job_id, _ = answered
    entries = [json.loads(line) for line in run("follow", job_id, "--json").out.splitlines()]
    cut = next(i for i, entry in enumerate(entries) if entry["id"] == "1-6") + 1
    whole = run("follow", job_id, "--format", format_).out

    rest = run("follow", job_id, "--format", format_, "--after", "1-6").out

    chunks = [entry for entry in entries[:cut] if entry["kind"] == "chunk"]
    before = {
        "text": lambda: "".join(c["data"]["choices"][0]["delta"].get("content") or "" for c in chunks),
        "chunks": lambda: "".join(line + "\n" for line in whole.splitlines()[: len(chunks)]),
        "entries": lambda: "".join(line + "\n" for line in whole.splitlines()[:cut]),
    }[format_]()
    assert before
    assert before + rest == whole


def test_after_the_end_there_is_nothing_and_no_wait(run: Run, answered: tuple[str, dict[str, Any]]) -> None:
    job_id, _ = answered
    end = json.loads(run("follow", job_id, "--json").out.splitlines()[-1])["id"]

    outcome = run("follow", job_id, "--after", end)

    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


@pytest.mark.parametrize("format_", ["text", "chunks", "entries"])
def test_a_job_that_failed_is_exit_code_1(run: Run, client: Client, format_: str) -> None:
    job = client.submit(request=body("No", fault="status", status=401))

    outcome = run("follow", job.id, "--format", format_)

    assert outcome.code == 1
    assert job.id in outcome.err
    assert ('"kind":"end"' in outcome.out) == (format_ == "entries")


def test_the_line_of_a_broken_answer_is_ended(run: Run, client: Client) -> None:
    job = client.submit(request=body("Half", chunks=6, fault="malformed"))

    outcome = run("follow", job.id, "--after", "0-0")

    assert outcome.code == 1
    assert outcome.out.endswith("\n")


@pytest.mark.usefixtures("worker")
def test_a_job_that_never_was_is_exit_code_3_at_once(run: Run) -> None:
    outcome = run("follow", new_job_id(), "--wait", "600")

    assert outcome.code == 3
    assert "no such job" in outcome.err


def test_a_cursor_of_a_wrong_form_is_exit_code_2(run: Run, answered: tuple[str, dict[str, Any]]) -> None:
    outcome = run("follow", answered[0], "--after", "yesterday")

    assert outcome.code == 2
    assert "'yesterday' is not an entry id" in outcome.err


def test_a_wait_that_is_over_is_exit_code_4(run: Run, idle: Environment, idle_client: Client) -> None:
    job = idle_client.submit(request=body("Wait"))

    outcome = run("follow", job.id, "--wait", "0", "--json", env=idle)

    assert outcome.code == 4
    assert [json.loads(line)["kind"] for line in outcome.out.splitlines()] == ["queued"]
    assert json.loads(outcome.err)["error"]["type"] == "ResultTimeout"


@pytest.mark.usefixtures("worker")
def test_text_and_json_exclude_each_other(run: Run) -> None:
    outcome = run("follow", new_job_id(), "--format", "text", "--json")

    assert outcome.code == 2
    assert "text is not JSON" in json.loads(outcome.err)["error"]["message"]


@pytest.mark.parametrize("cursor", ["1-99", "2-0", "9-9"])
def test_a_cursor_beyond_the_end_is_refused_at_once(
    run: Run, client: Client, answered: tuple[str, dict[str, Any]], cursor: str
) -> None:
    job_id, _ = answered
    end = client.status(job_id).last_entry_id

    outcome = run("follow", job_id, "--after", cursor)

    assert (outcome.code, outcome.out) == (2, "")
    assert f"{cursor} is beyond the end of the tape, {end}" in outcome.err


def test_the_end_is_a_cursor_after_which_nothing_comes(
    run: Run, client: Client, answered: tuple[str, dict[str, Any]]
) -> None:
    job_id, _ = answered

    outcome = run("follow", job_id, "--after", client.status(job_id).last_entry_id)

    assert (outcome.code, outcome.out) == (0, "")
