"""How the tests of dialects read an answer, and what they compare of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk as OpenAIChunk

from tokentape.completion import ChatCompletion, Choice, fold
from tokentape_worker.dialects import Call, Piece, Verdict
from tokentape_worker.route import DIALECTS

JOB_ID = "job_0123456789abcdef0123456789abcdef"
SSE = {"content-type": "text/event-stream"}

#: Bytes of an answer -> what the vendor's SDK makes of them.
Sdk = Callable[[bytes], Any]


def read(dialect: str, reads: Sequence[bytes], n: int = 1) -> tuple[list[Piece], Verdict]:
    adapter = DIALECTS[dialect].adapter(Call(JOB_ID, "asked-for", created=5, n=n))
    pieces = [piece for data in reads for piece in adapter.feed(data)]
    last, verdict = adapter.close()
    return pieces + last, verdict


def completed(dialect: str, data: bytes, n: int = 1) -> ChatCompletion:
    pieces, verdict = read(dialect, [data], n)
    assert verdict.error is None, verdict.error
    assert verdict.finished
    return fold(piece.chunk for piece in pieces)


def extra(value: Choice | Any, name: str) -> Any:
    return (value.model_extra or {}).get(name)


def calls_of(choice: Choice) -> list[tuple[str, Any]]:
    calls = choice.message.tool_calls or []
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls if call.function is not None]


def usage_of(completion: ChatCompletion) -> dict[str, Any]:
    assert completion.usage is not None
    usage = completion.usage
    prompt, answer = usage.prompt_tokens_details, usage.completion_tokens_details
    return {
        "prompt": usage.prompt_tokens,
        "completion": usage.completion_tokens,
        "total": usage.total_tokens,
        "cached": prompt and prompt.cached_tokens,
        "written": prompt and prompt.cache_write_tokens,
        "reasoning": answer and answer.reasoning_tokens,
    }


def openai_assembles(pieces: list[Piece]) -> Any:
    """What openai-python makes of the chunks that are published."""
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for piece in pieces:
        state.handle_chunk(OpenAIChunk.model_validate_json(piece.data))
    return as_openai_says(state)


def as_openai_says(state: ChatCompletionStreamState[None]) -> Any:
    """Without what only openai-python has. An empty reasoning or refusal is none, as everywhere here."""
    completion: Any = state.current_completion_snapshot.to_dict(mode="json")
    for choice in completion["choices"]:
        message = choice["message"]
        message.pop("parsed", None)
        for name in ("reasoning_content", "refusal"):
            message[name] = message.get(name) or None
        for call in message.get("tool_calls") or []:
            call.pop("index")
            call["function"].pop("parsed_arguments", None)
    return without_nulls(completion)


def without_extras(completion: ChatCompletion) -> Any:
    """Without the unknown fields of choices, which openai-python keeps from the first chunk only."""
    value = json.loads(completion.to_json())
    names = ("index", "message", "logprobs", "finish_reason")
    value["choices"] = [{name: choice.get(name) for name in names} for choice in value["choices"]]
    return without_nulls(value)


def without_calls(completion: ChatCompletion) -> Any:
    value = without_nulls(json.loads(completion.to_json()))
    for choice in value["choices"]:
        choice["message"].pop("tool_calls", None)
    return value


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
