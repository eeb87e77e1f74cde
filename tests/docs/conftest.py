"""The pages as tests see them: their code blocks, a shell that runs them as they stand, a service to run against."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tokentape import Client, Settings
from tokentape.embedded import EmbeddedServer
from tokentape.simulator import SimulatorThread

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "worker" / "README.md", ROOT / "producer" / "README.md", *DOCS.rglob("*.md")]
)

Environment = dict[str, str]

_FENCE = re.compile(r"^```(\w*)(?:[ {][^\n]*)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
_TITLED = re.compile(r'^```\w+ title="(.*?)"\n(.*?)^```', re.DOTALL | re.MULTILINE)
_INCLUDED = re.compile(r'^--8<-- "(.*?)"\n', re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, files that they include put in."""
    found = [text for name, text in _FENCE.findall(page.read_text()) if name == language]
    return [_INCLUDED.sub(lambda match: (ROOT / match[1]).read_text(), text) for text in found]


def titled(page: Path) -> dict[str, str]:
    """The blocks that stand for files, by name."""
    return dict(_TITLED.findall(page.read_text()))


def in_another_terminal(block: str) -> str:
    """`tokentape up` stays in the foreground of a terminal. Here it gets none, and is waited for as a reader would."""
    if block != "tokentape up\n":
        return block
    return "tokentape up >up.out &\nwhile ! [ -s up.out ]; do kill -0 $!; sleep 0.1; done\n"


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, each another."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def run_shell(
    lines: Sequence[str], folder: Path, ports: Sequence[str] = (), limit_s: float = 110
) -> subprocess.CompletedProcess[str]:
    """Run blocks as one shell would that is given them one after the other, and stops at the first that fails.

    The commands are those of the environment that runs the tests, or of the folder TOKENTAPE_TEST_BIN, by which
    script/release-check tries what was built. The home is empty. Each of `ports` is replaced by a free one, wherever it
    stands. What the blocks leave running in the background is stopped at the end, and whatever is left of it killed.
    """
    text = "\n".join(["set -eu", "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT", *lines])
    for port, free in zip(ports, free_ports(len(ports)), strict=True):
        text = re.sub(rf"\b{port}\b", str(free), text)
    commands = os.environ.get("TOKENTAPE_TEST_BIN") or Path(sys.executable).parent
    home = folder / "home"
    home.mkdir()
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "HOME": str(home)}
    shell = subprocess.Popen(
        ["bash", "-c", text],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        out, err = shell.communicate(timeout=limit_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    return subprocess.CompletedProcess(shell.args, shell.returncode, out, err)


@pytest.fixture(scope="session")
def service(valkey: EmbeddedServer) -> Iterator[Environment]:
    """The environment of programs that use a running service: a server, the simulator, a worker."""
    environment = {
        **os.environ,
        "TOKENTAPE_REDIS_URL": valkey.url,
        "TOKENTAPE_NAMESPACE": f"t{uuid.uuid4().hex[:12]}",
    }
    with SimulatorThread() as simulator:
        its = {**environment, "OPENAI_BASE_URL": simulator.base_url, "TOKENTAPE_LOG_LEVEL": "error"}
        worker = subprocess.Popen([sys.executable, "-P", "-m", "tokentape_worker"], env=its)
        try:
            yield environment
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(timeout=30)


@pytest.fixture
def client(service: Environment) -> Iterator[Client]:
    """A client of the service."""
    settings = Settings.load({name: value for name, value in service.items() if name.startswith("TOKENTAPE_")})
    with Client(settings=settings) as client:
        yield client
