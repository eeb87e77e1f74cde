"""The adapters against the vendors' own SDKs: the same bytes, read by both, say the same: openai-python and anthropic.

Each SDK is asked as a user would ask it, over a transport that answers with the bytes, so its own decoder of events,
its own types and its own accumulation are all part of the comparison. What only we do (numbering calls, mapping words,
adding counts up) is written down a second time here, from wire facts and not from the adapters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.dialects.reading import (
    SSE,
    Sdk,
    as_openai_says,
    calls_of,
    completed,
    extra,
    openai_assembles,
    read,
    usage_of,
    without_calls,
    without_extras,
    without_nulls,
)
from tests.dialects.streams import Event, anthropic_bytes, anthropic_events, cut
from tests.fold.test_fold_against_openai import streams as openai_streams
from tokentape.completion import fold

# ---- openai-python


def openai_bytes(chunks: list[Event]) -> bytes:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n"


def choices_of(chunks: list[Event]) -> int:
    return len({choice["index"] for chunk in chunks for choice in chunk["choices"]})


@pytest.fixture(scope="module")
def openai_sdk() -> Iterator[Sdk]:
    answer = b""
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=SSE, content=answer))
    with openai.OpenAI(api_key="k", base_url="http://sdk/v1", http_client=httpx2.Client(transport=transport)) as client:

        def read_by_sdk(data: bytes) -> Any:
            nonlocal answer
            answer = data
            state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
            for chunk in client.chat.completions.create(model="m", messages=[], stream=True):
                state.handle_chunk(chunk)
            return as_openai_says(state)

        yield read_by_sdk


@given(openai_streams())
def test_openai_answer_reads_as_openai_python_reads_it(openai_sdk: Sdk, chunks: list[Event]) -> None:
    data = openai_bytes(chunks)

    completion = completed("openai", data, choices_of(chunks))

    assert without_nulls(json.loads(completion.to_json())) == openai_sdk(data)


@given(openai_streams(), st.data())
def test_openai_answer_gives_the_same_pieces_in_any_cut(chunks: list[Event], data: st.DataObject) -> None:
    whole = openai_bytes(chunks)
    n = choices_of(chunks)

    assert read("openai", data.draw(st.composite(cut)(whole)), n) == read("openai", [whole], n)


# ---- anthropic

_ANTHROPIC_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


@pytest.fixture(scope="module")
def anthropic_sdk() -> Iterator[Sdk]:
    answer = b""
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=SSE, content=answer))
    http = httpx2.Client(transport=transport)
    with anthropic.Anthropic(api_key="k", base_url="http://sdk", http_client=http) as client:

        def read_by_sdk(data: bytes) -> Any:
            nonlocal answer
            answer = data
            with client.messages.stream(model="m", max_tokens=1, messages=[]) as stream:
                return stream.get_final_message()

        yield read_by_sdk


def blocks(message: Any, *kinds: str) -> list[Any]:
    return [block for block in message.content if block.type in kinds]


line_ends = st.sampled_from(["\n", "\r\n"])


@given(anthropic_events(), line_ends)
def test_anthropic_answer_reads_as_the_sdk_reads_it(anthropic_sdk: Sdk, events: list[Event], line_end: str) -> None:
    data = anthropic_bytes(events, line_end)
    theirs = anthropic_sdk(data)

    ours = completed("anthropic", data)

    choice = ours.choices[0]
    assert (ours.id, ours.model) == (theirs.id, theirs.model)
    assert choice.message.content == ("".join(block.text for block in blocks(theirs, "text")) or None)
    assert choice.message.reasoning_content == ("".join(block.thinking for block in blocks(theirs, "thinking")) or None)
    assert calls_of(choice) == [(block.name, block.input) for block in blocks(theirs, "tool_use")]
    assert [call.id for call in choice.message.tool_calls or []] == [block.id for block in blocks(theirs, "tool_use")]
    assert choice.finish_reason == _ANTHROPIC_REASONS[theirs.stop_reason]
    assert extra(choice, "stop_sequence") == theirs.stop_sequence
    assert choice.message.refusal == ((theirs.stop_details and theirs.stop_details.explanation) or None)


@given(anthropic_events())
def test_thinking_goes_back_signed_as_the_sdk_would_send_it_back(anthropic_sdk: Sdk, events: list[Event]) -> None:
    data = anthropic_bytes(events)
    theirs = blocks(anthropic_sdk(data), "thinking", "redacted_thinking")

    message = completed("anthropic", data).choices[0].message

    assert extra(message, "thinking_blocks") == (
        [{"index": place, **block.to_dict()} for place, block in enumerate(theirs)] or None
    )


@given(anthropic_events())
def test_citations_stand_where_the_text_is_that_the_sdk_hangs_them_on(anthropic_sdk: Sdk, events: list[Event]) -> None:
    data = anthropic_bytes(events)
    theirs = [(block.text, one) for block in blocks(anthropic_sdk(data), "text") for one in block.citations or []]

    message = completed("anthropic", data).choices[0].message

    annotations = [annotation.model_dump() for annotation in message.annotations or []]
    assert len(annotations) == len(theirs)
    for annotation, (text, citation) in zip(annotations, theirs, strict=True):
        said = annotation[annotation["type"]]
        assert (message.content or "")[said["start_index"] : said["end_index"]] == text
        assert said["cited_text"] == citation.cited_text
        if annotation["type"] == "url_citation":
            assert (said["url"], said["title"]) == (citation.url, citation.title)
        else:
            assert {**citation.to_dict(), **said} == said


@given(anthropic_events())
def test_anthropic_usage_is_what_the_sdk_counts(anthropic_sdk: Sdk, events: list[Event]) -> None:
    data = anthropic_bytes(events)
    theirs = anthropic_sdk(data).usage
    cached, written = theirs.cache_read_input_tokens or 0, theirs.cache_creation_input_tokens or 0
    prompt = theirs.input_tokens + cached + written

    assert usage_of(completed("anthropic", data)) == {
        "prompt": prompt,
        "completion": theirs.output_tokens,
        "total": prompt + theirs.output_tokens,
        "cached": cached,
        "written": written,
        "reasoning": theirs.output_tokens_details and theirs.output_tokens_details.thinking_tokens,
    }


@given(anthropic_events())
def test_whole_message_reads_as_the_streamed_one(anthropic_sdk: Sdk, events: list[Event]) -> None:
    data = anthropic_bytes(events)
    body = json.dumps(anthropic_sdk(data).to_dict()).encode()

    whole, streamed = completed("anthropic", body), completed("anthropic", data)

    assert [calls_of(choice) for choice in whole.choices] == [calls_of(choice) for choice in streamed.choices]
    assert without_calls(whole) == without_calls(streamed)


@given(anthropic_events(), line_ends, st.data())
def test_anthropic_answer_gives_the_same_pieces_in_any_cut(
    events: list[Event], line_end: str, data: st.DataObject
) -> None:
    whole = anthropic_bytes(events, line_end)

    assert read("anthropic", data.draw(st.composite(cut)(whole))) == read("anthropic", [whole])


@given(anthropic_events())
def test_openai_python_assembles_an_anthropic_answer_as_we_do(events: list[Event]) -> None:
    pieces, _ = read("anthropic", [anthropic_bytes(events)])

    assert openai_assembles(pieces) == without_extras(fold(piece.chunk for piece in pieces))
