"""A worker's log may be lost; its work is not."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from .conftest import Stack, body, wait_until


@pytest.fixture
def log_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that is full after a few lines."""
    reader, writer = os.pipe()
    if sys.platform == "linux":
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    os.close(reader)


@pytest.mark.parametrize("reader_leaves", [True, False], ids=["gone", "standing still"])
def test_a_log_that_nobody_reads_holds_up_neither_jobs_nor_the_end(
    stack: Stack, log_pipe: tuple[int, int], reader_leaves: bool
) -> None:
    client = stack.client()
    _, writer = log_pipe
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "tokentape_worker"],
        env=stack.environment(TOKENTAPE_LOG_LEVEL="info"),
        stderr=writer,
    )
    os.close(writer)
    try:
        wait_until(lambda: client.overview().workers)
        if reader_leaves:
            os.dup2(os.open(os.devnull, os.O_RDONLY), log_pipe[0])

        jobs = list(client.submit_many(body(f"job {number}") for number in range(30)))  # a line each, of 300 bytes

        assert all(job.result(60).text for job in jobs)
        wait_until(lambda: client.overview().running == 0)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=60) == 0
        assert client.overview().workers == []
    finally:
        worker.kill()
        worker.wait()
