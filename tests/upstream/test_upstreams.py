"""Calls over real sockets: what is asked, what comes of every way in which an answer can fail, and what is let go."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tokentape.completion import fold
from tokentape.errors import ConfigError
from tokentape.job import ErrorInfo
from tokentape.settings import Settings, Upstream
from tokentape_worker.dialects import Piece, Verdict
from tokentape_worker.patience import Patience
from tokentape_worker.upstreams import UpstreamError, Upstreams

from .conftest import Connect, Exchange, Serve

JOB_ID = "job_0123456789abcdef0123456789abcdef"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
KEY = "k3y-that-must-not-be-seen"


def event(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    value = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }
    return f"data: {json.dumps(value)}\n\n".encode()


A, STOP, DONE = event({"role": "assistant", "content": "a"}), event({}, "stop"), b"data: [DONE]\n\n"
ANSWER = A + STOP + DONE


async def answer_whole(exchange: Exchange) -> None:
    await exchange.send_whole(ANSWER, content_type="text/event-stream")


async def read(upstreams: Upstreams, name: str = "default", **body: Any) -> tuple[list[Piece], Verdict]:
    pieces: list[Piece] = []
    async with upstreams.call(name, {**BODY, **body}, job_id=JOB_ID) as call:
        async for some in call:
            assert some
            pieces += some
        return pieces, call.verdict


async def failure(upstreams: Upstreams, name: str = "default", **body: Any) -> ErrorInfo:
    with pytest.raises(UpstreamError) as caught:
        await read(upstreams, name, **body)
    assert name in caught.value.info.message
    return caught.value.info


async def test_answer_is_read_and_judged(serve: Serve, connect: Connect) -> None:
    upstreams = await connect((await serve(answer_whole)).url)

    pieces, verdict = await read(upstreams)

    assert fold(piece.chunk for piece in pieces).text == "a"
    assert verdict == Verdict(error=None, finished=True, sentinel=True)


async def test_request_carries_body_key_and_headers(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    server = await serve(answer_whole)
    upstreams = await connect(server.url, api_key_env="SOME_KEY", headers={"X-Team": "blue"})

    await read(upstreams)

    (exchange,) = server.exchanges
    assert exchange.line == "POST /v1/chat/completions HTTP/1.1"
    assert exchange.json() == {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    assert exchange.headers["authorization"] == f"Bearer {KEY}"
    assert exchange.headers["x-team"] == "blue"
    assert exchange.headers["accept-encoding"] == "identity"
    assert exchange.headers["content-type"] == "application/json"


async def test_key_is_read_from_a_file(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    server = await serve(answer_whole)
    upstreams = await connect(server.url, api_key_file=tmp_path / "key")

    await read(upstreams)

    assert server.exchanges[0].headers["authorization"] == f"Bearer {KEY}"


async def test_query_of_the_base_url_stays(serve: Serve, connect: Connect) -> None:
    server = await serve(answer_whole)
    upstreams = await connect(f"{server.url}/deployments/x/?api-version=2")

    await read(upstreams)

    assert server.exchanges[0].line == "POST /v1/deployments/x/chat/completions?api-version=2 HTTP/1.1"


async def test_pieces_come_as_they_arrive(serve: Serve, connect: Connect) -> None:
    seen = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.send_head()
        await exchange.send(A)
        await seen.wait()
        await exchange.send(STOP)

    upstreams = await connect((await serve(answer)).url)

    async with upstreams.call("default", BODY, job_id=JOB_ID) as call:
        first = await anext(call)
        seen.set()
        rest = [piece async for pieces in call for piece in pieces]

    assert (len(first), len(rest), call.verdict.completed) == (1, 1, True)


async def test_job_that_does_not_stream_is_one_chunk(serve: Serve, connect: Connect) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}

    async def answer(exchange: Exchange) -> None:
        await exchange.send_whole(json.dumps({"id": "c1", "choices": [choice]}).encode())

    server = await serve(answer)
    upstreams = await connect(server.url)

    pieces, verdict = await read(upstreams, stream=False)

    assert server.exchanges[0].json() == {**BODY, "stream": False}
    assert (len(pieces), verdict.completed) == (1, True)


async def test_connection_is_used_again_after_a_whole_answer(serve: Serve, connect: Connect) -> None:
    server = await serve(answer_whole)
    upstreams = await connect(server.url)

    for _ in range(3):
        await read(upstreams)

    assert (len(server.exchanges), server.connections) == (3, 1)


async def test_end_marker_ends_an_answer_whose_connection_stays_open(serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send_head()
        await exchange.send(ANSWER)
        await exchange.wait_closed()

    upstreams = await connect((await serve(answer)).url)

    _, verdict = await read(upstreams)

    assert verdict.completed


async def test_gzip_that_nobody_asked_for_is_read(serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send_whole(gzip.compress(ANSWER), content_encoding="gzip")

    upstreams = await connect((await serve(answer)).url)

    pieces, verdict = await read(upstreams)

    assert fold(piece.chunk for piece in pieces).text == "a"
    assert verdict.completed


async def test_cookies_of_one_answer_do_not_go_with_the_next_request(serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send_whole(ANSWER, set_cookie="who=first; Path=/")

    server = await serve(answer)
    upstreams = await connect(server.url)

    await read(upstreams)
    await read(upstreams)

    assert "cookie" not in server.exchanges[1].headers


async def test_environment_proxy_is_used(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = await serve(answer_whole)
    monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
    upstreams = await connect("http://upstream.example/v1")

    _, verdict = await read(upstreams)

    assert verdict.completed
    assert proxy.exchanges[0].line == "POST http://upstream.example/v1/chat/completions HTTP/1.1"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_environment_proxy_is_not_asked_for_this_machine_itself(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    server, proxy = await serve(answer_whole), await serve(answer_whole)
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
    upstreams = await connect(server.url.replace("127.0.0.1", host))

    _, verdict = await read(upstreams)

    assert verdict.completed
    assert (len(server.exchanges), proxy.exchanges) == (1, [])


async def test_an_upstreams_own_proxy_is_asked_for_this_machine_too(serve: Serve, connect: Connect) -> None:
    server, proxy = await serve(answer_whole), await serve(answer_whole)
    upstreams = await connect(server.url, proxy=proxy.url.removesuffix("/v1"))

    _, verdict = await read(upstreams)

    assert verdict.completed
    assert (server.exchanges, len(proxy.exchanges)) == ([], 1)


# ---- failing


async def test_error_status_is_classified(serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send_whole(
            b'{"error": {"message": "slow down"}}', 429, retry_after="Tue, 14 Nov 2023 22:13:50 GMT"
        )

    upstreams = await connect((await serve(answer)).url)

    info = await failure(upstreams)

    assert info == ErrorInfo(
        type="rate_limited", message="default: slow down", retryable=True, upstream_status=429, retry_after_s=30.0
    )


async def test_error_body_is_read_up_to_a_bound(serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send_head(500)
        while True:
            await exchange.send(b"x" * 65536)

    upstreams = await connect((await serve(answer)).url)

    info = await failure(upstreams)

    assert (info.upstream_status, len(info.message)) == (500, 500)


async def test_redirect_is_not_followed(serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send_whole(b"", 307, location="/elsewhere")

    server = await serve(answer)
    upstreams = await connect(server.url)

    info = await failure(upstreams)

    assert (info.type, info.retryable, info.upstream_status) == ("upstream_error", False, 307)
    assert len(server.exchanges) == 1


async def test_refused_connection(connect: Connect) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        upstreams = await connect(f"http://127.0.0.1:{unused.getsockname()[1]}/v1")

        info = await failure(upstreams)

    assert (info.type, info.code, info.retryable) == ("upstream_error", "connect", True)
    assert "ECONNREFUSED" in info.message


async def test_tls_to_a_server_that_speaks_none(serve: Serve, connect: Connect) -> None:
    server = await serve(answer_whole)
    upstreams = await connect(server.url.replace("http:", "https:"), connect_timeout_s=1)

    info = await failure(upstreams)

    assert info.retryable
    assert info.code in ("tls", "connect", "disconnected", "connect_timeout")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", "disconnected"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "bad_http"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 10_000 + b"\r\n\r\n", "bad_http"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "bad_http"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:\r\nzz\r\n\r\n", "bad_http"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n" + A, "truncated"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:", "truncated"),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\nthis is no gzip", "bad_encoding"),
    ],
    ids=["nothing", "no http", "long header", "bad size", "bad second size", "short body", "short chunk", "no gzip"],
)  # fmt: skip
async def test_broken_http_is_an_upstream_error(sent: bytes, code: str, serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(sent)
        exchange.writer.close()

    upstreams = await connect((await serve(answer)).url)

    info = await failure(upstreams)

    assert (info.type, info.code, info.retryable) == ("upstream_error", code, True)


async def test_bad_chunk_size_in_mid_answer_fails_no_later_than_silence(serve: Serve, connect: Connect) -> None:
    taken = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(A), A))
        await taken.wait()
        await exchange.send(b"nonsense\r\n")
        await exchange.wait_closed()

    # aiohttp 3.14 closes the connection and leaves the reader waiting, so it may be the idle timeout that ends it.
    upstreams = await connect((await serve(answer)).url, idle_timeout_s=0.2)

    async with upstreams.call("default", BODY, job_id=JOB_ID) as call:
        await anext(call)
        taken.set()
        with pytest.raises(UpstreamError) as caught:
            await anext(call)

    assert caught.value.info.retryable


async def test_pieces_before_a_break_are_given(serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n" + A)
        exchange.writer.close()

    upstreams = await connect((await serve(answer)).url)

    async with upstreams.call("default", BODY, job_id=JOB_ID) as call:
        pieces = await anext(call)
        with pytest.raises(UpstreamError) as caught:
            await anext(call)

    assert len(pieces) == 1
    assert caught.value.info.code == "truncated"


async def test_break_after_the_finish_reason_is_no_failure(serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n" + A + STOP)
        exchange.writer.close()

    upstreams = await connect((await serve(answer)).url)

    _, verdict = await read(upstreams)

    assert verdict == Verdict(error=None, finished=True, sentinel=False)


async def test_error_in_the_stream_is_the_verdict(serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send_head()
        await exchange.send(A + b'data: {"error": {"message": "no", "code": 502}}\n\n')
        await exchange.wait_closed()

    upstreams = await connect((await serve(answer)).url)

    _, verdict = await read(upstreams)

    assert verdict.error == ErrorInfo(
        type="upstream_error", message="default: no", retryable=True, upstream_status=502, code="502"
    )


async def test_comments_do_not_extend_the_wait_for_the_first_chunk(serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send_head()
        while True:
            await exchange.send(b": keep-alive\n\n")
            await asyncio.sleep(0.01)

    upstreams = await connect((await serve(answer)).url, first_chunk_timeout_s=0.2)

    info = await failure(upstreams)

    assert (info.type, info.code, info.retryable) == ("timeout", "first_chunk_timeout", True)


async def test_status_that_never_comes_is_a_timeout(serve: Serve, connect: Connect) -> None:
    upstreams = await connect((await serve(Exchange.wait_closed)).url, first_chunk_timeout_s=0.1)

    info = await failure(upstreams)

    assert (info.type, info.code) == ("timeout", "first_chunk_timeout")


async def test_silence_in_mid_answer_is_a_timeout(serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send_head()
        await exchange.send(A)
        await exchange.wait_closed()

    upstreams = await connect((await serve(answer)).url, idle_timeout_s=0.1)

    info = await failure(upstreams)

    assert (info.type, info.code, info.retryable) == ("timeout", "idle_timeout", True)


async def test_upstream_that_only_keeps_alive_is_given_up(serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send_head()
        await exchange.send(A)
        while True:
            await exchange.send(b": keep-alive\n\n")
            await asyncio.sleep(0.01)

    upstreams = await connect((await serve(answer)).url, idle_timeout_s=0.1, first_chunk_timeout_s=0.3)

    info = await failure(upstreams)

    assert info.code == "idle_timeout"


async def test_slow_caller_costs_the_upstream_no_patience(serve: Serve, connect: Connect) -> None:
    taken = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.send_head()
        await exchange.send(A)
        await taken.wait()
        await exchange.send(STOP + DONE)

    upstreams = await connect((await serve(answer)).url, idle_timeout_s=0.1, first_chunk_timeout_s=0.1)

    async with upstreams.call("default", BODY, job_id=JOB_ID) as call:
        await anext(call)
        asyncio.get_running_loop().call_later(0.3, taken.set)
        await taken.wait()
        async for _ in call:
            pass

    assert call.verdict.completed


async def test_event_that_is_too_large_is_fatal(serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send_whole(event({"content": "x" * 5000}))

    upstreams = await connect((await serve(answer)).url, settings={"max_output_bytes": 1024})

    _, verdict = await read(upstreams)

    assert verdict.error is not None
    assert (verdict.error.type, verdict.error.retryable) == ("output_too_large", False)


async def test_answer_that_is_too_large_is_fatal(serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send_head()
        while True:
            await exchange.send(A)

    upstreams = await connect((await serve(answer)).url, settings={"max_output_bytes": 5000})

    info = await failure(upstreams)

    assert (info.type, info.retryable) == ("output_too_large", False)


# ---- configuration and secrets


async def test_missing_key_fails_the_calls_to_that_upstream_alone(serve: Serve) -> None:
    server = await serve(answer_whole)
    settings = Settings(
        upstreams={
            "keyless": Upstream(base_url=server.url, api_key_env="NOT_SET_ANYWHERE"),
            "open": Upstream(base_url=server.url),
        }
    )

    async with Upstreams(settings) as upstreams:
        info = await failure(upstreams, "keyless")
        _, verdict = await read(upstreams, "open")

    assert (info.type, info.code, info.retryable) == ("authentication_error", "no_api_key", False)
    assert "NOT_SET_ANYWHERE" in info.message
    assert verdict.completed


async def test_key_file_that_is_empty_or_no_text_is_a_missing_key(connect: Connect, tmp_path: Path) -> None:
    for content in (b" \n", b"\xff\xfe" + KEY.encode()):
        (tmp_path / "key").write_bytes(content)

        with pytest.raises(ConfigError, match="no upstream can be called: default: api_key_file") as refused:
            await connect("http://127.0.0.1:9", api_key_file=tmp_path / "key")

        assert KEY not in str(refused.value)


async def test_who_has_a_job_already_ends_it_where_the_only_key_is_missing(serve: Serve) -> None:
    upstream = Upstream(base_url=(await serve(answer_whole)).url, api_key_env="NOT_SET_ANYWHERE")

    async with Upstreams(Settings(upstreams={"default": upstream}), must_serve=False) as upstreams:
        info = await failure(upstreams)

    assert (info.type, info.code) == ("authentication_error", "no_api_key")


async def test_unknown_upstream_is_refused(connect: Connect) -> None:
    upstreams = await connect("http://127.0.0.1:9")

    assert (await failure(upstreams, "other")).code == "unknown_upstream"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 401 No\r\nconnection: close\r\n\r\n" + json.dumps({"error": {"message": KEY, "code": KEY}}).encode(),
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + f"data: {json.dumps({'error': KEY})}\n\n".encode(),
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<p>" + KEY.encode(),
        b"no http at all",
        b"",
    ],
    ids=["error", "error in stream", "page", "no http", "nothing"],
)  # fmt: skip
async def test_key_is_in_no_error(
    answer: bytes, serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def send(exchange: Exchange) -> None:
        await exchange.send(answer)
        exchange.writer.close()

    monkeypatch.setenv("SOME_KEY", KEY)
    upstreams = await connect((await serve(send)).url, api_key_env="SOME_KEY")
    shown = [repr(upstreams)]

    try:
        _, verdict = await read(upstreams)
        shown.append(repr(verdict))
    except UpstreamError as error:
        shown += [repr(error.info), str(error), *_chain(error)]

    assert len(shown) > 1
    assert not [text for text in shown if KEY in text]


def _chain(error: BaseException | None) -> list[str]:
    return [] if error is None else [repr(error), str(error), *_chain(error.__cause__), *_chain(error.__context__)]


async def test_key_that_cannot_be_one_is_not_sent(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", f"{KEY}\r\nx: y")

    with pytest.raises(ConfigError, match="characters that no key has") as refused:
        await connect("http://127.0.0.1:9", api_key_env="SOME_KEY")

    assert KEY not in str(refused.value)


async def test_header_that_cannot_be_sent_is_in_no_error(serve: Serve, connect: Connect) -> None:
    upstreams = await connect((await serve(answer_whole)).url, headers={"api-key": f"{KEY}\r\nx: y"})

    with pytest.raises(UpstreamError) as caught:
        await read(upstreams)

    assert (caught.value.info.type, caught.value.info.retryable) == ("invalid_request", False)
    assert not [text for text in _chain(caught.value) if KEY in text]


# ---- letting go


async def test_leaving_closes_the_socket(serve: Serve, connect: Connect) -> None:
    closed = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.send_head()
        await exchange.send(A)
        await exchange.wait_closed()
        closed.set()

    upstreams = await connect((await serve(answer)).url)

    async with upstreams.call("default", BODY, job_id=JOB_ID) as call:
        await anext(call)

    async with asyncio.timeout(10):
        await closed.wait()


@pytest.mark.parametrize(
    "before", [b"", b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + A], ids=["no answer yet", "midway"]
)
async def test_cancelling_closes_the_socket(before: bytes, serve: Serve, connect: Connect) -> None:
    reached, closed = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.send(before)
        reached.set()
        await exchange.wait_closed()
        closed.set()

    upstreams = await connect((await serve(answer)).url)
    reading = asyncio.create_task(read(upstreams))
    await reached.wait()

    reading.cancel()

    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await reading
        await closed.wait()


async def test_calls_beyond_the_bound_wait_for_their_turn(serve: Serve, connect: Connect) -> None:
    full, release = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if len(server.exchanges) == 2:
            full.set()
        await release.wait()
        await answer_whole(exchange)

    server = await serve(answer)
    upstreams = await connect(server.url, max_concurrency=2)
    reading = [asyncio.create_task(read(upstreams)) for _ in range(5)]
    async with asyncio.timeout(10):
        await full.wait()

    under_way = len(server.exchanges)
    release.set()
    results = await asyncio.gather(*reading)

    assert under_way == 2
    assert all(verdict.completed for _, verdict in results)
    assert len(server.exchanges) == 5


async def test_verdict_is_not_given_before_the_end(serve: Serve, connect: Connect) -> None:
    upstreams = await connect((await serve(answer_whole)).url)

    async with upstreams.call("default", BODY, job_id=JOB_ID) as call:
        with pytest.raises(RuntimeError, match="not read to its end"):
            _ = call.verdict


async def test_calls_need_upstreams_that_are_open() -> None:
    with pytest.raises(RuntimeError, match="not entered"):
        await read(Upstreams(Settings(upstreams={"default": Upstream()})))


# ---- patience


async def test_cancellation_from_elsewhere_is_no_timeout() -> None:
    patience = Patience()

    async def wait() -> None:
        await patience.wait(asyncio.Event().wait(), patience.now() + 60)

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    patience.close()


async def test_deadline_that_moves_closer_is_kept() -> None:
    patience = Patience()
    done = asyncio.Event()
    done.set()
    await patience.wait(done.wait(), patience.now() + 60)

    with pytest.raises(TimeoutError):
        await patience.wait(asyncio.Event().wait(), patience.now() + 0.01)
    patience.close()


async def test_timer_that_rings_between_two_waits_is_harmless() -> None:
    patience = Patience()
    done = asyncio.Event()
    done.set()
    await patience.wait(done.wait(), patience.now())
    await asyncio.sleep(0.01)

    await patience.wait(done.wait(), patience.now() + 60)

    with pytest.raises(TimeoutError):
        await patience.wait(asyncio.Event().wait(), patience.now() + 0.01)
    patience.close()


async def test_timeout_leaves_the_task_uncancelled() -> None:
    patience = Patience()

    with pytest.raises(TimeoutError):
        await patience.wait(asyncio.Event().wait(), patience.now() + 0.01)

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    patience.close()
