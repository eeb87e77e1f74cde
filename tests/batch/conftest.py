"""A stack for batches: the shared server, a simulator, workers and commands as processes, input files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tokentape import Client, Settings
from tokentape.cli import main
from tokentape.embedded import EmbeddedServer
from tokentape.simulator import SimulatorThread


def wait_until(condition: Callable[[], Any], limit_s: float = 60.0) -> Any:
    """Poll until something is true, and return it. The limit is there to end a test that failed, not to time it."""
    until = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < until, "the condition never came true"
        time.sleep(0.005)
    return value


def body(text: str, **script: Any) -> dict[str, Any]:
    """A chat request; keyword arguments script the simulator's answer."""
    request: dict[str, Any] = {"model": "sim-1", "messages": [{"role": "user", "content": text}]}
    return {**request, "simulate": script} if script else request


def batch_line(custom_id: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """A line in OpenAI's batch format."""
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": request}


def write_lines(path: Path, lines: list[Any]) -> Path:
    """Write a JSONL file; texts stand as they are."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


class BatchStack:
    """One test's namespace and folder."""

    def __init__(
        self, url: str, simulator: SimulatorThread, namespace: str, folder: Path, close: contextlib.ExitStack
    ) -> None:
        self.url = url
        self.simulator = simulator
        self.namespace = namespace
        self.folder = folder
        self.input = folder / "in.jsonl"
        self.out = folder / "out.jsonl"
        self.errors = folder / "out.errors.jsonl"
        self._close = close

    def settings(self, **overrides: Any) -> Settings:
        upstream = {"base_url": self.simulator.base_url}
        values = {"redis_url": self.url, "namespace": self.namespace, "upstreams": {"default": upstream}}
        return Settings.load({}, **{**values, **overrides})

    def client(self) -> Client:
        return self._close.enter_context(Client(settings=self.settings()))

    def environment(self, **overrides: str) -> dict[str, str]:
        """For processes. Leases are short, so that recovery is seen soon."""
        own = {
            "TOKENTAPE_REDIS_URL": self.url,
            "TOKENTAPE_NAMESPACE": self.namespace,
            "TOKENTAPE_LEASE_S": "1",
            "TOKENTAPE_SWEEP_S": "0.1",
            "TOKENTAPE_GRACE_S": "0",
            "TOKENTAPE_LOG_LEVEL": "error",
            "OPENAI_BASE_URL": self.simulator.base_url,
        }
        return {**os.environ, **own, **overrides}

    def worker(self, **overrides: str) -> subprocess.Popen[bytes]:
        """A worker as users run it."""
        return self._start(["-m", "tokentape_worker"], self.environment(**overrides))

    def command(self, *options: str, **overrides: str) -> subprocess.Popen[bytes]:
        """`tokentape batch run` on this test's files, as a process."""
        arguments = ["-m", "tokentape_producer", "batch", "run", str(self.input), "--out", str(self.out), *options]
        return self._start(arguments, self.environment(**overrides))

    def process(self, arguments: list[str], **overrides: str) -> subprocess.Popen[bytes]:
        """Any other program in Python."""
        return self._start(arguments, self.environment(**overrides))

    def run(self, *options: str, **overrides: str) -> tuple[int, dict[str, Any], str]:
        """The same with --json to its end, in this process. -> exit code, summary, what stood on stderr"""
        code, out, err = self.tell("--json", *options, **overrides)
        return code, json.loads(out) if out else {}, err

    def refused(self, *options: str, **overrides: str) -> tuple[int, dict[str, Any]]:
        """One that has nothing to say on stdout. -> exit code, the error"""
        code, out, err = self.tell("--json", *options, **overrides)
        assert out == ""
        assert err.count("\n") == 1
        error: dict[str, Any] = json.loads(err)["error"]
        return code, error

    def tell(self, *options: str, **overrides: str) -> tuple[int, str, str]:
        """One for a person. -> exit code, stdout, stderr"""
        return self.main("batch", "run", str(self.input), "--out", str(self.out), *options, **overrides)

    def main(self, *arguments: str, **overrides: str) -> tuple[int, str, str]:
        """Any command in this process. -> exit code, stdout, stderr"""
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment(**overrides)),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main(arguments)
        assert isinstance(ended.value.code, int)
        return ended.value.code, out.getvalue(), err.getvalue()

    def _start(self, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._close.callback(_end, process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:
        process.kill()


@pytest.fixture
def stack(valkey: EmbeddedServer, namespace: str, tmp_path: Path) -> Iterator[BatchStack]:
    with contextlib.ExitStack() as close:
        simulator = close.enter_context(SimulatorThread())
        yield BatchStack(valkey.url, simulator, namespace, tmp_path, close)
