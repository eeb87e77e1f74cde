"""`tokentape simulate` as a process, and what it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tokentape.script import Script
from tokentape.simulator import expected_text

from .conftest import Environment, Run, body, command


@contextmanager
def simulating(environment: Environment, *options: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """A simulator on a free port, and a client of it."""
    with subprocess.Popen(
        command("simulate", "--port", "0", "--json", *options), env=environment, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            base_url = json.loads(process.stdout.readline())["base_url"]
            with httpx.Client(base_url=base_url, trust_env=False, timeout=20) as http:
                yield http, process
        finally:
            process.kill()


def ask(http: httpx.Client, request: dict[str, Any]) -> httpx.Response:
    return http.post("chat/completions", json=request)


def test_it_answers_by_the_script_of_its_options_until_it_is_told_to_stop(environment: Environment) -> None:
    request = body("Hello")
    options = ("--chunks", "7", "--chunk-bytes", "9", "--model", "m-1", "--model", "m-2")

    with simulating(environment, *options) as (http, process):
        answer = ask(http, request).json()
        models = [model["id"] for model in http.get("models").json()["data"]]
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=20)

    expected = expected_text(request, defaults=Script(chunks=7, chunk_bytes=9))
    assert answer["choices"][0]["message"]["content"] == expected
    assert models == ["m-1", "m-2"]
    assert code == 0


def test_faults_and_the_key_come_from_options(environment: Environment) -> None:
    options = ("--fault", "status", "--status", "503", "--fault-times", "1", "--api-key-env", "A_KEY")

    with simulating({**environment, "A_KEY": "sesame"}, *options) as (http, _):
        stranger = ask(http, body("Hi"))
        http.headers["Authorization"] = "Bearer sesame"
        first, second = ask(http, body("Hi")), ask(http, body("Hi"))

    assert (stranger.status_code, first.status_code, second.status_code) == (401, 503, 200)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--fault", "fire"), "'fire'"),
        (("--chunks", "-1"), "--chunks"),
        (("--status", "200"), "--status"),
        (("--api-key-env", "NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE is not set"),
        (("--host", "203.0.113.1"), "cannot listen on 203.0.113.1"),
    ],
)
def test_what_is_wrong_is_exit_code_2(run: Run, options: tuple[str, ...], said: str) -> None:
    outcome = run("simulate", "--port", "0", *options)

    assert outcome.code == 2
    assert said in outcome.err
    assert outcome.err.count("\n") == 1


def test_without_aiohttp_it_names_the_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tokentape.simulator")
    monkeypatch.setitem(sys.modules, "aiohttp", None)

    outcome = run("simulate", "--port", "0")

    assert outcome.code == 2
    assert outcome.err == "error: the simulator needs the 'local' extra: pip install 'tokentape[local]'\n"
