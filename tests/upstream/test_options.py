"""What an upstream's settings change about each call, and n answers from an API that gives one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokentape.completion import ChatCompletion, fold
from tokentape.errors import ConfigError
from tokentape.settings import Settings, Upstream
from tokentape_worker.dialects import Piece, Verdict
from tokentape_worker.upstreams import UpstreamError, Upstreams

from .conftest import Connect, Exchange, Serve

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
JOB_ID = "job_0123456789abcdef0123456789abcdef"
SECRET = "not-a-real-one"


async def ask(upstreams: Upstreams, body: dict[str, Any], **options: Any) -> tuple[list[Piece], Verdict]:
    pieces: list[Piece] = []
    async with upstreams.call("default", body, job_id=JOB_ID, **options) as call:
        async for some in call:
            pieces += some
        return pieces, call.verdict


async def answer_openai(exchange: Exchange) -> None:
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    delta = {"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
    await exchange.send_head(200, content_type="text/event-stream")
    await exchange.send(b"data: " + json.dumps({**chunk, "choices": [delta]}).encode() + b"\n\ndata: [DONE]\n\n")


async def answer_anthropic(exchange: Exchange) -> None:
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "c", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "a"}], "usage": {"input_tokens": 3, "output_tokens": 2},
    }  # fmt: skip
    await exchange.send_head(200, content_type="application/json")
    await exchange.send(json.dumps(message).encode())


async def answer_gemini(exchange: Exchange) -> None:
    response = {"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}]}
    await exchange.send_head(200, content_type="application/json")
    await exchange.send(json.dumps(response).encode())


ANSWERS = {"openai": answer_openai, "anthropic": answer_anthropic, "gemini": answer_gemini}


@pytest.mark.parametrize(
    ("dialect", "header", "value"),
    [
        ("openai", "authorization", f"Bearer {SECRET}"),
        ("anthropic", "x-api-key", SECRET),
        ("gemini", "x-goog-api-key", SECRET),
    ],
)
async def test_key_is_sent_as_the_dialect_has_it(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch, dialect: str, header: str, value: str
) -> None:
    monkeypatch.setenv("SOME_KEY", SECRET)
    server = await serve(ANSWERS[dialect])
    upstreams = await connect(server.url, dialect=dialect, api_key_env="SOME_KEY")

    await ask(upstreams, BODY)

    assert server.exchanges[0].headers[header] == value
    assert sum(SECRET in text for text in server.exchanges[0].headers.values()) == 1


@pytest.mark.parametrize("auth", ["x-api-key", "api-key", "none"])
async def test_key_is_sent_as_the_settings_say(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch, auth: str
) -> None:
    monkeypatch.setenv("SOME_KEY", SECRET)
    server = await serve(answer_openai)
    upstreams = await connect(server.url, api_key_env="SOME_KEY", auth=auth)

    await ask(upstreams, BODY)

    headers = server.exchanges[0].headers
    assert "authorization" not in headers
    assert [name for name, value in headers.items() if value == SECRET] == ([] if auth == "none" else [auth])


async def test_anthropic_is_asked_in_the_version_that_is_read(serve: Serve, connect: Connect) -> None:
    server = await serve(answer_anthropic)

    await ask(await connect(server.url, dialect="anthropic"), BODY)
    await ask(await connect(server.url, dialect="anthropic", anthropic_version="2026-10-21"), BODY)

    assert [one.headers["anthropic-version"] for one in server.exchanges] == ["2023-06-01", "2026-10-21"]
    assert server.exchanges[0].line == "POST /v1/messages HTTP/1.1"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("", "/v1beta/models/m:streamGenerateContent?alt=sse"),
        ("/v1", "/v1/models/m:streamGenerateContent?alt=sse"),
        ("/v1/projects/p/locations/l/publishers/google",
         "/v1/projects/p/locations/l/publishers/google/models/m:streamGenerateContent?alt=sse"),
    ],
)  # fmt: skip
async def test_version_stands_in_the_path_once(serve: Serve, connect: Connect, path: str, line: str) -> None:
    server = await serve(answer_gemini)

    await ask(await connect(server.url.removesuffix("/v1") + path, dialect="gemini"), BODY)

    assert server.exchanges[0].line == f"POST {line} HTTP/1.1"


async def test_azure_is_asked_by_deployment(serve: Serve, connect: Connect) -> None:
    server = await serve(answer_openai)
    url = server.url.removesuffix("/v1") + "/openai/deployments/{model}?api-version=2024-10-21"

    await ask(await connect(url), {**BODY, "model": "my model"})

    line = "POST /openai/deployments/my%20model/chat/completions?api-version=2024-10-21 HTTP/1.1"
    assert server.exchanges[0].line == line


async def test_query_fields_and_names_are_the_upstreams(serve: Serve, connect: Connect) -> None:
    server = await serve(answer_openai)
    options = {
        "query": {"team": "a b"},
        "drop_fields": ["stream_options", "seed"],
        "rename_fields": {"max_completion_tokens": "max_tokens"},
    }
    upstreams = await connect(server.url, **options)

    await ask(upstreams, {**BODY, "seed": 7, "max_completion_tokens": 5})

    assert server.exchanges[0].line == "POST /v1/chat/completions?team=a+b HTTP/1.1"
    assert server.exchanges[0].json() == {**BODY, "stream": True, "max_tokens": 5}


async def test_field_that_a_dialect_does_not_know_is_refused_by_its_name(serve: Serve, connect: Connect) -> None:
    server = await serve(answer_anthropic)
    upstreams = await connect(server.url, dialect="anthropic")

    with pytest.raises(UpstreamError) as caught:
        await ask(upstreams, {**BODY, "logit_bias": {"1": 2}})

    assert (caught.value.info.type, caught.value.info.retryable) == ("invalid_request", False)
    assert "logit_bias" in caught.value.info.message
    assert server.exchanges == []


async def test_field_that_a_dialect_does_not_know_is_left_out_where_the_settings_say_so(
    serve: Serve, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await serve(answer_anthropic)
    upstreams = await connect(server.url, dialect="anthropic", drop_unsupported=True)

    await ask(upstreams, {**BODY, "logit_bias": {"1": 2}})

    assert "logit_bias" not in server.exchanges[0].json()
    assert "logit_bias" in capsys.readouterr().out


async def test_native_body_is_sent_as_it_is(serve: Serve, connect: Connect) -> None:
    server = await serve(answer_gemini)
    upstreams = await connect(server.url, dialect="gemini", drop_fields=["contents"])
    native = {"model": "gemini-x", "stream": False, "contents": [{"parts": [{"text": "Hi"}]}], "labels": {"a": "b"}}

    pieces, verdict = await ask(upstreams, native, native=True)

    assert server.exchanges[0].line == "POST /v1/models/gemini-x:generateContent HTTP/1.1"
    assert server.exchanges[0].json() == {"contents": native["contents"], "labels": {"a": "b"}}
    assert (fold(piece.chunk for piece in pieces).text, verdict.completed) == ("a", True)


def completion_of(pieces: list[Piece]) -> ChatCompletion:
    return fold(piece.chunk for piece in pieces)


@pytest.mark.parametrize(("dialect", "options"), [("anthropic", {}), ("openai", {"fan_out": True})])
async def test_n_answers_are_n_calls_where_an_api_gives_one(
    serve: Serve, connect: Connect, dialect: str, options: dict[str, Any]
) -> None:
    server = await serve(ANSWERS[dialect])
    upstreams = await connect(server.url, dialect=dialect, **options)

    pieces, verdict = await ask(upstreams, {**BODY, "n": 3})

    completion = completion_of(pieces)
    assert [(choice.index, choice.message.content) for choice in completion.choices] == [(0, "a"), (1, "a"), (2, "a")]
    assert len({piece.chunk.id for piece in pieces}) == 1
    assert (verdict.completed, verdict.finished) == (True, True)
    assert len(server.exchanges) == 3
    assert all("n" not in exchange.json() for exchange in server.exchanges)


async def test_usage_of_n_calls_is_counted_together(serve: Serve, connect: Connect) -> None:
    upstreams = await connect((await serve(answer_anthropic)).url, dialect="anthropic")

    pieces, _ = await ask(upstreams, {**BODY, "n": 3})

    usage = completion_of(pieces).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (9, 6, 15)


async def test_one_call_of_n_that_fails_fails_the_answer(serve: Serve, connect: Connect) -> None:
    async def refuse_the_second(exchange: Exchange) -> None:
        if server.exchanges.index(exchange) == 1:
            await exchange.send_head(500)
        else:
            await answer_anthropic(exchange)

    server = await serve(refuse_the_second)
    upstreams = await connect(server.url, dialect="anthropic")

    with pytest.raises(UpstreamError) as caught:
        await ask(upstreams, {**BODY, "n": 3})

    assert caught.value.info.upstream_status == 500


@pytest.mark.parametrize("content", [None, "", "no certificate"])
async def test_certificates_that_cannot_be_used_are_refused_before_any_call(
    connect: Connect, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "authority.pem"
    if content is not None:
        file.write_text(content)

    with pytest.raises(ConfigError) as refused:
        await connect("http://127.0.0.1:9/v1", ca_file=file)

    assert str(refused.value).startswith(f"upstream 'default': ca_file: {file} ")


@pytest.mark.parametrize(
    ("dialect", "base_url"),
    [
        ("openai", "https://api.openai.com/v1"),
        ("anthropic", "https://api.anthropic.com"),
        ("gemini", "https://generativelanguage.googleapis.com"),
    ],
)
def test_base_url_is_the_vendors_unless_set(dialect: str, base_url: str) -> None:
    assert Upstream.model_validate({"dialect": dialect}).base_url == base_url


def test_option_of_a_wrong_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean drop_unsupported"):
        Settings.load({}, upstreams={"u": {"drop_unsuported": True}})
