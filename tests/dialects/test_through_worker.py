"""Every case of `cases.jsonl` through a real worker: served over HTTP whole, byte by byte and in 7-byte writes, and
judged by what a client gets: the result, the part that arrived before a failure, and the end."""

from __future__ import annotations

import contextlib
import re
import socket
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest

from tokentape import Client, InvalidRequest, JobFailed, Settings
from tokentape.embedded import EmbeddedServer
from tokentape_worker.embedded import EmbeddedWorker

from .test_quirks import CASES, Case, body_of, check


class Replay(BaseHTTPRequestHandler):
    """Answers a call with the case that its model names, in writes of the size that stands behind it."""

    cases: ClassVar[dict[str, Case]] = {case["name"]: case for case in CASES}

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["content-length"])).decode()
        model = re.search(r"([\w.-]+)@(\d+)", self.path + asked)  # Gemini names it in the path
        assert model is not None
        case, step = self.cases[model[1]], int(model[2])
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send_response(case["http_status"])
        for name, value in {**case["headers"], "content-type": case["content_type"], "connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        body = body_of(case)
        with contextlib.suppress(ConnectionError):  # an answer that is over is not read to its end
            for at in range(0, len(body), step):
                self.wfile.write(body[at : at + step])
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def client(valkey: EmbeddedServer) -> Iterator[Client]:
    """A client whose jobs are run by a worker with one upstream of each dialect, all of them the replay."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replay)
    Thread(target=server.serve_forever, daemon=True).start()
    base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    settings = Settings.load(
        {},
        redis_url=valkey.url,
        namespace=f"t{uuid.uuid4().hex[:12]}",
        log_level="error",
        upstreams={
            dialect: {"dialect": dialect, "base_url": base_url, "max_attempts": 1}
            for dialect in ("openai", "anthropic", "gemini")
        },
    )
    with EmbeddedWorker(settings), Client(settings=settings) as connected:
        yield connected
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("step", [1 << 30, 1, 7], ids=["whole", "byte by byte", "7 bytes"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_case_comes_out_right(client: Client, case: Case, step: int) -> None:
    request = {"model": f"{case['name']}@{step}", "messages": [{"role": "user", "content": "Hi"}], **case["request"]}

    job = client.submit(request=request, upstream=case["provider"])

    error = None
    try:
        completion = job.result(wait_s=60)
    except JobFailed as failure:
        error, completion = failure.error, client.partial(job.id)
    check(case, completion, error, None)
    assert [entry.kind for entry in job.follow()].count("end") == 1
    assert job.status().status == ("completed" if case["expect"]["error"] is None else "failed")


NATIVE: dict[str, dict[str, Any]] = {
    "anthropic": {"model": f"a_basic_ping@{1 << 30}", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]},
    "gemini": {"model": f"g_basic_crlf@{1 << 30}", "contents": [{"parts": [{"text": "Hi"}]}]},
}


@pytest.mark.parametrize("dialect", NATIVE)
def test_native_body_gets_an_answer_like_any_other(client: Client, dialect: str) -> None:
    completion = client.submit(request=NATIVE[dialect], upstream=dialect, native=True).result(wait_s=60)

    assert (completion.object, completion.text) == ("chat.completion", "Hello!")


@pytest.fixture
def stranger(client: Client) -> Iterator[Client]:
    """A client of the same service that has no upstreams of its own."""
    settings = Settings.load({}, redis_url=client.settings.redis_url, namespace=client.settings.namespace)
    with Client(settings=settings) as connected:
        yield connected


@pytest.mark.parametrize("dialect", ["anthropic", "gemini"])
def test_request_that_the_upstream_has_no_word_for_is_refused_at_submit(stranger: Client, dialect: str) -> None:
    before = stranger.overview().open

    with pytest.raises(InvalidRequest) as caught:
        stranger.submit(model="m", messages=[{"role": "user", "content": "Hi"}], upstream=dialect, logit_bias={"1": 2})

    assert caught.value.field == "logit_bias"
    assert stranger.overview().open == before


def test_request_in_openais_words_passes_whatever_it_holds(stranger: Client) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    request = {"model": f"seed_basic@{1 << 30}", "messages": messages, "logit_bias": {"1": 2}}

    assert stranger.submit(request=request, upstream="openai").status().upstream == "openai"
