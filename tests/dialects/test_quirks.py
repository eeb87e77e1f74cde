"""What upstreams really send, and what must come out of it: `cases.jsonl`, through the adapter and through HTTP.

A case is a whole answer (`http_status`, `headers`, `bytes_b64`) to a job (`request`), and what the assembled completion
must say (`expect`). An `error` is null, `retryable` or `fatal`. A finish reason that is null there, with an end marker,
may have been synthesised.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from openai.lib.streaming.chat._completions import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk as OpenAIChunk

from tests.upstream.conftest import Connect, Exchange, Serve
from tokentape.completion import ChatCompletion, Choice, fold
from tokentape.job import ErrorInfo
from tokentape_worker.classify import from_response
from tokentape_worker.dialects import Call, Piece, Verdict
from tokentape_worker.route import DIALECTS
from tokentape_worker.upstreams import UpstreamError

Case = dict[str, Any]

JOB_ID = "job_0123456789abcdef0123456789abcdef"
CASES: list[Case] = [
    json.loads(line) for line in (Path(__file__).parent / "cases.jsonl").read_bytes().split(b"\n") if line
]
STREAMS = [case for case in CASES if case["http_status"] == 200]
#: What openai-python can assemble: it refuses a second list of annotations, because they have no index.
ASSEMBLED = [case for case in STREAMS if case["expect"]["error"] is None and "annotations" not in case["name"]]


def body_of(case: Case) -> bytes:
    return base64.b64decode(case["bytes_b64"])


def read(case: Case, step: int | None) -> tuple[list[Piece], Verdict]:
    body = body_of(case)
    step = step or max(1, len(body))
    adapter = DIALECTS[case["provider"]].adapter(Call(JOB_ID, "asked-for", created=1, n=case["request"].get("n", 1)))
    pieces = [piece for at in range(0, len(body), step) for piece in adapter.feed(body[at : at + step])]
    last, verdict = adapter.close()
    return pieces + last, verdict


def check(case: Case, completion: ChatCompletion, error: ErrorInfo | None, verdict: Verdict | None) -> None:
    expect = case["expect"]
    assert error_kind(error) == expect["error"], error
    if verdict is not None:
        assert (verdict.finished, verdict.sentinel) == (expect["finished"], expect["sentinel"])
    assert [choice.index for choice in completion.choices] == [choice["index"] for choice in expect["choices"]]
    for choice, wanted in zip(completion.choices, expect["choices"], strict=True):
        flagged = bool((choice.model_extra or {}).get("finish_reason_synthesised"))
        check_choice(choice, wanted, synthesised=flagged or (verdict is not None and verdict.synthesised))
    assert usage_of(completion) == expect["usage"]
    if expect.get("id", "*") != "*":
        assert completion.id == expect["id"]
    if "model" in expect:
        assert completion.model == expect["model"]
    if "retry_after_s" in expect:
        assert error is not None
        assert error.retry_after_s == expect["retry_after_s"]


def check_choice(choice: Choice, wanted: dict[str, Any], *, synthesised: bool) -> None:
    message = choice.message
    assert (message.content, message.reasoning_content, message.refusal) == (
        wanted["content"],
        wanted["reasoning"],
        wanted["refusal"],
    )
    if not (synthesised and wanted["finish_reason"] is None):
        assert choice.finish_reason in (
            wanted["finish_reason"],
            wanted.get("alt_finish_reason", wanted["finish_reason"]),
        )
    calls = message.tool_calls or []
    assert len(calls) == len(wanted["tool_calls"])
    for call, wanted_call in zip(calls, wanted["tool_calls"], strict=True):
        assert call.function is not None
        assert call.id
        assert call.id == wanted_call["id"] or wanted_call["id"] == "*"
        assert call.function.name == wanted_call["name"]
        assert json_or_text(call.function.arguments) == json_or_text(wanted_call["arguments"])
    if "logprobs_len" in wanted:
        assert choice.logprobs is not None
        assert len(choice.logprobs.content or []) == wanted["logprobs_len"]
    if "annotations_len" in wanted:
        assert len(message.annotations or []) == wanted["annotations_len"]
    if "function_call" in wanted:
        assert message.function_call is not None
        assert message.function_call.model_dump() == wanted["function_call"]


def error_kind(error: ErrorInfo | None) -> str | None:
    if error is None:
        return None
    return "retryable" if error.retryable else "fatal"


def json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def usage_of(completion: ChatCompletion) -> dict[str, int] | None:
    usage = completion.usage
    if usage is None:
        return None
    flat: dict[str, int] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    for details, names in (
        (usage.prompt_tokens_details, ("cached_tokens", "cache_write_tokens")),
        (usage.completion_tokens_details, ("reasoning_tokens",)),
    ):
        flat |= {name: value for name in names if (value := getattr(details, name, None)) is not None}
    return flat


@pytest.mark.parametrize("step", [None, 1, 7], ids=["whole", "byte by byte", "7 bytes"])
@pytest.mark.parametrize("case", STREAMS, ids=lambda case: case["name"])
def test_answer_is_read_as_it_was_meant(case: Case, step: int | None) -> None:
    pieces, verdict = read(case, step)

    check(case, fold(piece.chunk for piece in pieces), verdict.error, verdict)


@pytest.mark.parametrize("case", [case for case in CASES if case["http_status"] != 200], ids=lambda case: case["name"])
def test_status_and_body_are_classified(case: Case) -> None:
    error = from_response(case["http_status"], case["headers"], body_of(case), now=0.0)

    check(case, fold([]), error, None)


@pytest.mark.parametrize("case", STREAMS, ids=lambda case: case["name"])
def test_chunk_and_published_json_say_the_same(case: Case) -> None:
    pieces, _ = read(case, None)

    for piece in pieces:
        assert type(piece.chunk).model_validate_json(piece.data) == piece.chunk
        assert json.loads(piece.data)["object"] == "chat.completion.chunk"
    assert len({(piece.chunk.id, piece.chunk.model, piece.chunk.created) for piece in pieces}) <= 1


@pytest.mark.parametrize("case", ASSEMBLED, ids=lambda case: case["name"])
def test_openai_python_assembles_what_is_published(case: Case) -> None:
    pieces, verdict = read(case, None)
    state: Any = ChatCompletionStreamState()

    for piece in pieces:
        state.handle_chunk(OpenAIChunk.model_validate_json(piece.data))
    snapshot = state.current_completion_snapshot.to_dict()
    for choice in snapshot["choices"]:
        choice["message"]["role"] = choice["message"]["role"] or "assistant"  # null there where none was sent

    check(case, ChatCompletion.model_validate(snapshot), None, verdict)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
async def test_answer_comes_through_http(case: Case, serve: Serve, connect: Connect) -> None:
    async def answer(exchange: Exchange) -> None:
        headers = {name.replace("-", "_"): value for name, value in case["headers"].items()}
        await exchange.send_head(case["http_status"], content_type=case["content_type"], **headers)
        body = body_of(case)
        for at in range(0, len(body), 4096):
            await exchange.send(body[at : at + 4096])

    upstreams = await connect((await serve(answer)).url, dialect=case["provider"])
    pieces: list[Piece] = []
    verdict, error = None, None

    try:
        async with upstreams.call("default", {"model": "m", "messages": [], **case["request"]}, job_id=JOB_ID) as call:
            async for some in call:
                pieces += some
            verdict = call.verdict
            error = verdict.error
    except UpstreamError as failure:
        error = failure.info

    check(case, fold(piece.chunk for piece in pieces), error, verdict)
