"""`status --watch`, `completion`, and colours: what is shown again, completed, and left plain."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tokentape import Client
from tokentape.live import Live

from .conftest import Environment, Run, body, command, unique


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_newest_text_replaces_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    live = Live(out)
    live.show("one\ntwo")
    live.show("three")
    live.show("four\nfive")
    assert out.getvalue() == (
        "one\x1b[K\ntwo\x1b[K\n\x1b[J" + "\x1b[2Fthree\x1b[K\n\x1b[J" + "\x1b[1Ffour\x1b[K\nfive\x1b[K\n\x1b[J"
    )


def test_what_does_not_fit_a_terminal_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((10, 3)))
    out = Terminal()
    Live(out).show("a line that is long\nb\nc\nd")
    assert out.getvalue() == "a line th\x1b[K\nb\x1b[K\n\x1b[J"


def test_wide_characters_take_two_cells_and_combining_ones_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((6, 9)))
    out = Terminal()
    Live(out).show("東京東京\ne\u0301e\u0301e\u0301e\u0301e\u0301e\u0301")
    assert out.getvalue() == "東京\x1b[K\n" + 5 * "e\u0301" + "\x1b[K\n\x1b[J"


def test_elsewhere_texts_stand_one_below_the_other() -> None:
    out = io.StringIO()
    live = Live(out)
    live.show("one")
    live.show("a\ntable")
    assert out.getvalue() == "one\na\ntable\n\n"


def test_a_job_is_watched_until_it_has_ended(run: Run, client: Client) -> None:
    job = client.submit(**body(unique("watched"), chunks=5, interval_ms=300))
    outcome = run("status", job.id, "--watch", "--json")
    assert outcome.code == 0
    seen = [json.loads(line)["status"] for line in outcome.out.splitlines()]
    assert seen[-1] == "completed"
    assert "completed" not in seen[:-1]


def test_a_job_that_is_not_there_is_not_watched(run: Run) -> None:
    assert run("status", "job_" + 32 * "0", "--watch").code == 3


def test_the_overview_is_shown_until_ctrl_c(environment: Environment, worker: None) -> None:
    process = subprocess.Popen(command("status", "--watch", "--json"), env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    first, second = (json.loads(process.stdout.readline()) for _ in range(2))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert first["workers"]
    assert second["workers"]
    assert process.returncode == 130


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(run: Run, shell: str, tmp_path: Path) -> None:
    outcome = run("completion", shell)
    assert outcome.code == 0
    assert "_TOKENTAPE_COMPLETE" in outcome.out
    if program := shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(outcome.out)
        subprocess.run([program, "-n", script], check=True, timeout=30)


def test_what_is_completed(environment: Environment) -> None:
    def completed(words: str, position: int) -> list[str]:
        env = {**environment, "_TOKENTAPE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
        done = subprocess.run(command(), env=env, capture_output=True, text=True, check=False, timeout=30)
        return [line.removeprefix("plain,") for line in done.stdout.splitlines()]

    assert completed("tokentape s", 1) == ["submit", "status", "simulate"]
    assert completed("tokentape w", 1) == ["worker"]  # of a service
    assert completed("tokentape status --w", 2) == ["--watch"]
    assert completed("tokentape follow --format ", 3) == ["text", "chunks", "entries"]


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("1", False)])
def test_colours_are_for_terminals_and_for_who_wants_them(
    environment: Environment, no_color: str | None, coloured: bool
) -> None:
    env = {name: value for name, value in environment.items() if name != "NO_COLOR"}
    env |= {"NO_COLOR": no_color} if no_color else {}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command("doctor"), env=env | {"TERM": "xterm"}, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not read:
            break
        said += read
    os.close(ours)
    process.wait(timeout=30)
    assert b"redis_url" in said
    assert (b"\x1b[" in said) == coloured


def test_no_colours_in_a_pipe(run: Run) -> None:
    assert "\x1b[" not in run("doctor").out
