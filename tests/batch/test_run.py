"""The command from end to end: a real server, a worker process, the command as a process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import OutOfMemoryError

from tokentape.connection import refused
from tokentape.job import derive_job_id
from tokentape.simulator import expected_text
from tokentape.tape import Tape
from tokentape_producer.collector import Collector

from .conftest import BatchStack, batch_line, body, read_lines, wait_until, write_lines


def texts(stack: BatchStack) -> dict[str, str]:
    """The answers in the output, by custom_id. Each stands there once."""
    lines = read_lines(stack.out)
    answers = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
    assert len(answers) == len(lines)
    return answers


def job_id_of(batch_id: str, line: int) -> str:
    return derive_job_id(f"batch:{batch_id}", f"{batch_id}:{line}")


def test_lines_of_both_formats_are_answered_in_openais_output_format(stack: BatchStack) -> None:
    requests = {f"käse {n}": body(f"hello {n}") for n in range(3)}
    plain = body("plain")
    write_lines(stack.input, [*(batch_line(name, one) for name, one in requests.items()), "", plain])
    stack.worker()

    code, summary, said = stack.run()

    assert (code, summary["status"], summary["lines"], summary["completed"]) == (0, "completed", 4, 4)
    assert said == ""
    expected = {name: expected_text(one) for name, one in requests.items()}
    assert texts(stack) == {**expected, "line-000005": expected_text(plain)}
    for line in read_lines(stack.out):
        assert (line["error"], line["response"]["status_code"]) == (None, 200)
        assert line["id"].startswith("batch_req_")
        assert line["response"]["request_id"].startswith("job_")
        assert line["response"]["body"]["object"] == "chat.completion"
    assert stack.errors.read_bytes() == b""


def test_bad_line_is_named_and_nothing_is_enqueued(stack: BatchStack, redis_client: redis.Redis) -> None:
    write_lines(stack.input, [body("good"), {"model": "m", "messages": []}, "{"])

    code, out, said = stack.tell()
    its_code, error = stack.refused()

    assert (code, out) == (its_code, "") == (2, "")
    first, second, last = said.splitlines()
    assert first.startswith("  line 2: messages: ")
    assert second.startswith("  line 3: not JSON")
    assert last.startswith(f"error: {stack.input}: 2 bad lines, nothing was enqueued; the first is line 2: messages: ")
    assert (error["type"], error["exit_code"]) == ("BadInput", 2)
    assert f"error: {error['message']}" == last
    assert not list(redis_client.scan_iter(f"{stack.namespace}:*"))
    assert not stack.out.exists()


def test_failed_lines_stand_in_the_errors_and_the_others_are_answered(stack: BatchStack) -> None:
    bad = body("bad", fault="status", status=400)
    write_lines(stack.input, [batch_line("good", body("good")), batch_line("bad", bad)])
    stack.worker()

    code, summary, _ = stack.run()

    assert (code, summary["completed"], summary["failed"]) == (1, 1, 1)
    assert texts(stack) == {"good": expected_text(body("good"))}
    (line,) = read_lines(stack.errors)
    assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("bad", None, 400)
    assert line["response"]["request_id"].startswith("job_")
    error = line["response"]["body"]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request"
    assert error["message"]


def test_same_command_has_nothing_to_do_when_all_is_answered(stack: BatchStack) -> None:
    write_lines(stack.input, [body("1"), body("2", fault="status", status=400)])
    stack.worker()
    first = stack.run()
    written = stack.out.read_bytes(), stack.errors.read_bytes()
    calls = stack.simulator.calls()

    # Without a server: what is answered needs none.
    second = stack.run(TOKENTAPE_REDIS_URL="redis://127.0.0.1:1/0")
    code, out, said = stack.tell(TOKENTAPE_REDIS_URL="redis://127.0.0.1:1/0")

    assert (first[0], second[0], code) == (1, 1, 1)
    assert second[1]["answered_before"] == 2
    assert (out, said) == (
        "",
        "Nothing to do: 2 of 2 lines answered: 1 completed, 1 failed by earlier runs.\n",
    )
    assert (stack.out.read_bytes(), stack.errors.read_bytes()) == written
    assert stack.simulator.calls() == calls


def test_second_run_at_once_is_refused_and_leaves_the_first_alone(stack: BatchStack) -> None:
    write_lines(stack.input, [body("1")])
    first = stack.command()
    wait_until(lambda: stack.out.with_name("out.jsonl.batch").exists())

    code, _, said = stack.run()
    stack.worker()

    assert code == 2
    assert "another run" in said
    assert first.wait(timeout=60) == 0
    assert texts(stack) == {"line-000001": expected_text(body("1"))}


def test_other_input_does_not_touch_the_results_of_the_first(stack: BatchStack) -> None:
    write_lines(stack.input, [body("1")])
    stack.worker()
    stack.run()
    write_lines(stack.input, [body("2")])

    code, _, said = stack.run()

    assert code == 2
    assert "another content" in said
    assert texts(stack) == {"line-000001": expected_text(body("1"))}


def test_name_that_another_input_had_is_refused(stack: BatchStack) -> None:
    write_lines(stack.input, [body("1")])
    stack.worker()
    stack.run("--batch-id", "nightly")
    for path in (stack.out, stack.errors):
        path.unlink()
    write_lines(stack.input, [body("2")])

    code, _, said = stack.run("--batch-id", "nightly")

    assert code == 2
    assert "another --batch-id" in said


def test_answers_that_still_stand_in_redis_are_fetched_for_another_output(stack: BatchStack) -> None:
    write_lines(stack.input, [body("1"), body("2")])
    stack.worker()
    stack.run()
    first = texts(stack)
    stack.out.unlink()

    code, _, _ = stack.run()

    assert code == 0
    assert texts(stack) == first
    assert stack.simulator.calls() == 2


@pytest.mark.parametrize("as_json", [True, False])
def test_interrupt_stops_cleanly_and_the_same_command_goes_on(stack: BatchStack, as_json: bool) -> None:
    requests = [body(f"{n}", interval_ms=20) for n in range(40)]
    write_lines(stack.input, requests)
    command = stack.command("--window", "8", "--json" if as_json else "--no-progress")
    stack.worker()
    wait_until(lambda: stack.out.exists() and stack.out.read_bytes().count(b"\n") >= 5)

    command.send_signal(signal.SIGINT)
    out, said = command.communicate(timeout=60)
    before = len(read_lines(stack.out))
    code, summary, _ = stack.run()

    assert command.returncode == 130
    if as_json:
        assert (json.loads(out)["status"], json.loads(out)["completed"]) == ("interrupted", before)
        assert said == b""
    else:
        assert out == b""
        assert said.startswith(f"Interrupted. {before} of 40 lines answered: {before} completed".encode())
        assert said.endswith(b". The same command goes on from here.\n")
    assert (code, summary["completed"]) == (0, 40)
    assert 5 <= summary["answered_before"] == before < 40
    assert texts(stack) == {f"line-{n:06d}": expected_text(one) for n, one in enumerate(requests, 1)}
    assert stack.simulator.calls() == 40


def test_lines_that_the_window_leaves_no_time_expire_without_a_worker(stack: BatchStack) -> None:
    write_lines(stack.input, [batch_line(f"{n}", body(f"{n}")) for n in range(5)])

    code, out, said = stack.tell("--timeout", "1", "--window", "2")

    assert (code, out) == (4, "")
    assert "5 of 5 lines answered: 5 expired in " in said
    lines = read_lines(stack.errors)
    assert sorted(line["custom_id"] for line in lines) == list("01234")
    assert {(line["response"], line["error"]["code"]) for line in lines} == {(None, "batch_expired")}
    assert stack.simulator.calls() == 0


def test_answers_that_came_before_the_window_closed_are_collected_after_it(stack: BatchStack) -> None:
    write_lines(stack.input, [body("1"), body("2")])
    stack.worker()
    stack.run("--keep")
    record = stack.out.with_name("out.jsonl.batch")
    stack.out.write_bytes(b"")
    record.write_text(json.dumps({**json.loads(record.read_text()), "started_at": 0.0}))

    code, summary, _ = stack.run()

    assert (code, summary["completed"]) == (0, 2)
    assert stack.simulator.calls() == 2


def test_line_whose_job_is_cancelled_is_written_as_cancelled(stack: BatchStack) -> None:
    write_lines(stack.input, [batch_line("a", body("a"))])
    command = stack.command("--batch-id", "b")
    client, job_id = stack.client(), job_id_of("b", 1)
    wait_until(lambda: client.overview().open)

    client.cancel(job_id)

    assert command.wait(timeout=60) == 1
    (line,) = read_lines(stack.errors)
    assert (line["response"], line["error"]["code"]) == (None, "batch_cancelled")


def test_job_whose_tape_vanishes_is_run_again(stack: BatchStack, redis_client: redis.Redis) -> None:
    write_lines(stack.input, [body("1"), body("2")])
    command = stack.command("--batch-id", "b")
    client, tape = stack.client(), Tape(stack.namespace, job_id_of("b", 2))
    wait_until(lambda: client.overview().open == 2)

    redis_client.delete(tape.key, tape.result_key, tape.request_key)
    wait_until(lambda: redis_client.exists(tape.key))
    stack.worker()

    assert command.wait(timeout=60) == 0
    assert texts(stack) == {f"line-{n:06d}": expected_text(body(f"{n}")) for n in (1, 2)}


def test_completed_jobs_leave_redis_soon_and_failed_ones_stay(stack: BatchStack, redis_client: redis.Redis) -> None:
    write_lines(stack.input, [body("1"), body("2", fault="status", status=400)])
    stack.worker()

    stack.run("--batch-id", "b")

    good, bad = (Tape(stack.namespace, job_id_of("b", line)) for line in (1, 2))
    for key in (good.key, good.result_key, good.request_key, f"rq:job:{good.job_id}", f"rq:results:{good.job_id}"):
        assert 0 < redis_client.ttl(key) <= 60, key
    assert redis_client.ttl(bad.key) > 60


def test_jobs_that_full_memory_keeps_from_being_let_go_end_no_run(
    stack: BatchStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        full_memory = OutOfMemoryError("command not allowed when used memory > 'maxmemory'")
        raise refused(full_memory) from full_memory

    monkeypatch.setattr(Collector, "let_go", full)
    write_lines(stack.input, [body(str(number)) for number in range(20)])
    stack.worker()

    code, facts, _ = stack.run()

    assert (code, facts["completed"]) == (0, 20)


def test_completed_jobs_stay_for_the_retention_where_that_is_asked_for(
    stack: BatchStack, redis_client: redis.Redis
) -> None:
    write_lines(stack.input, [body("1")])
    stack.worker()

    stack.run("--batch-id", "b", "--keep")

    assert redis_client.ttl(Tape(stack.namespace, job_id_of("b", 1)).key) > 60


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--upstream", "nowhere"], "no upstream 'nowhere'"),
        (["--errors", "{input}"], "the same file"),
        (["--out", "-"], "is not a file"),
        (["--out", "."], "not a regular file"),
        (["--out", "/dev/stdout"], "not a regular file"),
        (["--batch-id", "a b"], "--batch-id"),
        (["--window", "0"], "--window"),
        (["--priority", "urgent"], "--priority"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_enqueued(
    stack: BatchStack, redis_client: redis.Redis, options: list[str], word: str
) -> None:
    write_lines(stack.input, [body("1")])

    code, _, said = stack.run(*(option.format(input=stack.input) for option in options))

    assert code == 2
    assert word in said
    assert not list(redis_client.scan_iter(f"{stack.namespace}:*"))


def test_input_that_links_to_itself_is_refused(stack: BatchStack) -> None:
    stack.input.symlink_to(stack.input)

    code, _, said = stack.run()

    assert code == 2
    assert "cannot be read" in said


def test_redis_that_is_not_there_is_told_as_by_every_command_and_nothing_is_left_behind(stack: BatchStack) -> None:
    write_lines(stack.input, [body("1")])
    away = {"TOKENTAPE_REDIS_URL": "redis://:s3cret@127.0.0.1:1/0", "TOKENTAPE_REDIS_WAIT_S": "0.2"}

    code, out, said = stack.tell("--no-progress", **away)
    its_code, error = stack.refused(**away)

    assert (code, out) == (its_code, "") == (5, "")
    assert said.startswith("error: Redis does not answer: ")
    assert "redis://:***@127.0.0.1:1/0 from TOKENTAPE_REDIS_URL" in said
    assert said.count("\n") == 1
    assert (error["type"], f"error: {error['message']}\n") == ("RedisUnavailable", said)
    assert [path.name for path in stack.folder.iterdir()] == ["in.jsonl"]


def test_run_that_an_outage_ends_says_how_far_it_was_and_that_it_can_go_on(stack: BatchStack) -> None:
    write_lines(stack.input, [body("1"), body("2")])
    stack.worker()
    stack.run()
    answered = stack.out.read_bytes().splitlines(keepends=True)
    stack.out.write_bytes(answered[0])
    away = {"TOKENTAPE_REDIS_URL": "redis://127.0.0.1:1/0", "TOKENTAPE_REDIS_WAIT_S": "0.2"}

    code, _, said = stack.tell("--no-progress", **away)
    its_code, summary, error = stack.run(**away)

    assert code == its_code == 5
    assert said.startswith("1 of 2 lines answered: 1 completed. The same command goes on from here.\nerror: Redis ")
    assert (summary["status"], summary["completed"], summary["answered_before"]) == ("stopped", 1, 1)
    assert json.loads(error)["error"]["type"] == "RedisUnavailable"


def test_upstream_that_nobody_knows_leaves_no_files_that_stand_in_the_way_of_the_right_one(stack: BatchStack) -> None:
    write_lines(stack.input, [body("1")])

    code, _, said = stack.tell("--upstream", "nosuch")
    left = [path.name for path in stack.folder.iterdir()]
    stack.worker()
    mended, summary, _ = stack.run("--upstream", "default")

    assert code == 2
    assert said.startswith("error: upstream: no upstream 'nosuch'")
    assert "goes on" not in said
    assert left == ["in.jsonl"]
    assert (mended, summary["completed"]) == (0, 1)


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "2> >(exec true)", ">&- 2>&-", "--json 2>&-"])
def test_stderr_that_takes_nothing_changes_nothing(stack: BatchStack, redirected: str) -> None:
    if "/dev/full" in redirected and not Path("/dev/full").exists():
        pytest.skip("has no device that is always full")
    write_lines(stack.input, [body("1")])
    stack.worker()
    command = f"{sys.executable} -P -m tokentape_producer batch run {stack.input} --out {stack.out} {redirected}"

    done = subprocess.run(["bash", "-c", command], env=stack.environment(), timeout=60, check=False)

    assert done.returncode == 0
    assert texts(stack) == {"line-000001": expected_text(body("1"))}


@pytest.mark.parametrize("flag", ["--quiet", "--no-progress"])
def test_quiet_command_says_only_what_was_asked_for(stack: BatchStack, flag: str) -> None:
    write_lines(stack.input, [body("1")])
    stack.worker()

    code, out, said = stack.tell(flag)

    assert (code, out) == (0, "")
    assert said.startswith("1 of 1 lines answered: 1 completed in ") == (flag == "--no-progress")
    assert bool(said) == (flag == "--no-progress")


def test_priority_and_names_reach_the_job(stack: BatchStack) -> None:
    write_lines(stack.input, [batch_line("a", body("a"))])
    stack.worker()

    stack.run("--batch-id", "b", "--priority", "high", "--upstream", "default")

    view: Any = stack.client().status(job_id_of("b", 1))
    assert (view.priority, view.upstream) == ("high", "default")
    assert view.metadata == {"batch_id": "b", "line": "1", "custom_id": "a"}
