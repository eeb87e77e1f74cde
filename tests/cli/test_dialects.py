"""A chat request with a PDF, by the commands that a user types: one worker process, an upstream of each dialect."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokentape import Client
from tokentape.simulator import SimulatorThread, expected_text

from .conftest import Environment, Run, settings_of, wait_until

ROOT = Path(__file__).parents[2]
PDF = ROOT / "examples" / "pdf.json"
CONFIG = """
[upstreams.default]
base_url = "{simulator.base_url}"

[upstreams.claude]
dialect = "anthropic"
base_url = "{simulator.root_url}"
models = ["claude-*"]

[upstreams.gemini]
dialect = "gemini"
base_url = "{simulator.root_url}"
models = ["gemini-*"]
"""


@pytest.fixture(scope="module")
def three(
    environment: Environment, simulator: SimulatorThread, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Environment]:
    """The environment of a namespace whose worker serves the simulator in three dialects."""
    config = tmp_path_factory.mktemp("dialects") / "tokentape.toml"
    config.write_text(CONFIG.format(simulator=simulator), encoding="utf-8")
    namespace = {"TOKENTAPE_NAMESPACE": f"t{uuid.uuid4().hex[:12]}"}
    its = {**environment, **namespace, "TOKENTAPE_CONFIG": str(config), "TOKENTAPE_LOG_LEVEL": "error"}
    process = subprocess.Popen([sys.executable, "-P", "-m", "tokentape_worker"], env=its)
    try:
        with Client(settings=settings_of({**environment, **namespace})) as client:
            wait_until(lambda: client.overview().workers)
        yield namespace
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


@pytest.mark.parametrize("upstream", ["default", "claude", "gemini"])
def test_a_request_with_a_pdf_is_answered_whatever_the_upstream_speaks(
    run: Run, three: Environment, upstream: str
) -> None:
    outcome = run("submit", "--upstream", upstream, "--request", str(PDF), "--follow", env=three)

    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == expected_text(json.loads(PDF.read_text())).strip()
