"""`tokentape demo`, end to end: it is exact, it says so where it is not, and nothing outlives it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from tokentape.completion import ChatCompletion
from tokentape.demo_engines import SIMULATED, difference
from tokentape.demo_view import head, plain, tail
from tokentape.simulator import expected_completion, expected_text

from .conftest import Environment, Run, body, command, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

WAIT_S = 60.0


class DemoProcess:
    """A running demo. Its processes are known by a mark in their environment, which they all inherit."""

    def __init__(self, environment: Environment, prompts: Path, out: Path, *options: str) -> None:
        self._mark = f"DEMO_OF_TEST={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        self.process = subprocess.Popen(
            command("demo", "--prompts", str(prompts), "--out", str(out), *options),
            env={**environment, name: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def read_until(self, said: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if said in line:
                return
        pytest.fail(f"the demo never said {said!r}: {self.process.communicate()}")

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, out, err

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
        self.process.communicate()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Four prompts, long enough to be in the middle of something."""
    requests = [body(f"Question {n}, вопрос, 質問", chunks=40 + n, interval_ms=30) for n in range(4)]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return file


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


@pytest.fixture
def start(environment: Environment, prompts: Path, out: Path) -> Iterator[Any]:
    """Starts demos; the environment's own settings, which name another server, must not reach their processes."""
    demos: list[DemoProcess] = []

    def start_demo(*options: str) -> DemoProcess:
        demos.append(DemoProcess(environment, prompts, out, *options))
        return demos[-1]

    yield start_demo
    for demo in demos:
        demo.close()


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_worker_is_killed_and_every_answer_is_exact(start: Any, prompts: Path, out: Path) -> None:
    demo = start()

    code, said, errors = demo.finish()

    rows, requests = rows_of(out), rows_of(prompts)
    texts = [row["completion"]["choices"][0]["message"]["content"] for row in rows]
    assert (code, errors) == (0, "")
    assert texts == [expected_text(request) for request in requests]
    assert all(row["exact"] and row["status"] == "completed" for row in rows)
    assert [row["request"] for row in rows] == requests
    assert any(row["attempts"] == 2 for row in rows)
    assert "worker 1 killed (SIGKILL" in said
    assert "restarted, and ran again" in said
    assert "exact answers  4 of 4" in said
    assert str(out) in said
    assert wait_until(lambda: not demo.processes())


def test_an_answer_that_is_not_exact_is_named_and_is_exit_code_1(start: Any, prompts: Path, out: Path) -> None:
    with prompts.open("a") as file:
        file.write(json.dumps(body("Refused", fault="status", status=400)) + "\n")

    demo = start("--no-kill", "--json")
    code, said, errors = demo.finish()

    facts, rows = json.loads(said), rows_of(out)
    assert code == 1
    assert [row["exact"] for row in rows] == [True] * 4 + [False]
    assert (facts["engine"], facts["jobs"], facts["exact"], facts["results"]) == ("sim", 5, 4, str(out))
    assert list(facts["faults"]) == [rows[4]["job_id"]]
    assert (facts["worker_killed"], facts["restarted"], facts["attempts_restarted"]) == (False, [], 0)
    assert facts["chunks"] > 160
    assert facts["chunks_per_s"] > 0
    assert facts["first_chunk_ms"]["median"] <= facts["first_chunk_ms"]["worst"]
    assert "#5 NOT EXACT (invalid_request: " in errors
    assert "exact answers  4 of 5" in errors


def test_a_file_that_is_not_its_own_is_left_alone(run: Run, out: Path) -> None:
    out.write_text("precious\n")

    outcome = run("demo", "--out", str(out))

    assert outcome.code == 2
    assert "is there, and no demo has written it; name another file with --out" in outcome.err
    assert out.read_text() == "precious\n"


@pytest.mark.parametrize("moment", ["server: ", "submitted 4 jobs", "worker 1 killed"])
def test_ctrl_c_at_any_moment_leaves_no_process(start: Any, out: Path, moment: str) -> None:
    demo = start()
    demo.read_until(moment)

    demo.process.send_signal(signal.SIGINT)

    code, _, errors = demo.finish()
    assert code == 130
    assert "Traceback" not in errors
    assert wait_until(lambda: not demo.processes())
    assert not out.exists()


def test_a_demo_that_is_killed_leaves_no_process(start: Any) -> None:
    demo = start()
    demo.read_until("submitted 4 jobs")
    assert len(demo.processes()) >= 4

    demo.process.kill()

    assert wait_until(lambda: not demo.processes())


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "holds no prompts"),
        ('{"model": "m"}\n', "line 1: messages"),
        ('\n\n{"model": "m", "messages": [{"role": "user", "content": "x"}]}\nnonsense\n', "line 4: request: not JSON"),
    ],
)
def test_a_bad_prompt_is_named_by_its_line(run: Run, tmp_path: Path, lines: str, said: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(lines)

    outcome = run("demo", "--prompts", str(file), "--out", str(tmp_path / "out.jsonl"))

    assert outcome.code == 2
    assert outcome.out == ""
    assert said in outcome.err


def test_a_folder_that_is_not_there_is_told_before_anything_runs(run: Run, prompts: Path, tmp_path: Path) -> None:
    outcome = run("demo", "--prompts", str(prompts), "--out", str(tmp_path / "nowhere" / "out.jsonl"))

    assert outcome.code == 2
    assert "nowhere/out.jsonl cannot be written (No such file or directory)" in outcome.err


def test_the_real_api_is_asked_only_with_a_key(run: Run, prompts: Path, out: Path) -> None:
    outcome = run("demo", "--engine", "openai", "--prompts", str(prompts), "--out", str(out))

    assert outcome.code == 2
    assert "OPENAI_API_KEY" in outcome.err


def test_our_own_prompts_are_many_and_not_all_english() -> None:
    file = Path(__file__).parents[2] / "examples" / "prompts.jsonl"

    requests = rows_of(file)

    texts = [request["messages"][-1]["content"] for request in requests]
    assert len(texts) == len(set(texts)) >= 20
    assert sum(not text.isascii() for text in texts) >= 8
    assert any("\u0590" <= char <= "\u06ff" for text in texts for char in text)  # right to left
    assert any("\u4e00" <= char <= "\u9fff" for text in texts for char in text)


def test_a_difference_names_where_it_is() -> None:
    completion = expected_completion(body("Same"), SIMULATED)
    expected = ChatCompletion.model_validate(completion)
    other_model = ChatCompletion.model_validate({**completion, "model": "another"})
    message = completion["choices"][0]["message"]
    message["content"] = message["content"][:10] + "#" + message["content"][11:]
    other_text = ChatCompletion.model_validate(completion)

    assert difference(expected.model_copy(), expected) is None
    assert (difference(other_text, expected) or "").startswith("differs at character 10: '#")
    assert difference(other_model, expected) == "differs in model"


def test_what_is_shown_fits_and_steers_no_terminal() -> None:
    assert plain("a\x1b[31mb\r\n\tc") == "a [31mb c"
    assert head("東京東京東京", 8) == "東京東…"
    assert cell_len(tail("日本 stone 東京", 9)) <= 9
    assert tail("日本 stone 東京", 9).endswith("東京")
    assert head("short", 8) == tail("short", 8) == "short"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_language_model_says_the_same_through_the_queue_as_directly(
    environment: Environment, tmp_path: Path, out: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    own = (Path(__file__).parents[2] / "examples" / "prompts.jsonl").read_text().splitlines()
    prompts.write_text("\n".join(own[:6]))
    demo = DemoProcess(environment, prompts, out, "--engine", "llama")

    said, errors = demo.process.communicate()

    assert (demo.process.returncode, errors) == (0, ""), said
    assert "exact answers  6 of 6" in said
    assert "worker 1 killed" in said
    assert all(row["completion"]["choices"][0]["message"]["content"] for row in rows_of(out))
