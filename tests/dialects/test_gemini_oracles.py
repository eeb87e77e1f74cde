"""The Gemini adapter against google-genai: the same bytes, read by both, say the same. See test_oracles.

That SDK gives the responses one by one and leaves it to its caller to join them, so they are joined here: by index of
the candidate, in the order of arrival, as its chats do for the one candidate they know.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import types as genai_types
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.dialects.reading import (
    SSE,
    Sdk,
    calls_of,
    completed,
    extra,
    openai_assembles,
    read,
    usage_of,
    without_extras,
)
from tests.dialects.streams import Event, candidates_of, cut, gemini_bytes, gemini_events
from tokentape.completion import fold

_GEMINI_REASONS = {"STOP": "stop", "MAX_TOKENS": "length"}


@pytest.fixture(scope="module")
def gemini_sdk() -> Iterator[Sdk]:
    answer = b""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=SSE, content=answer))
    options = genai_types.HttpOptions(base_url="http://sdk", httpx_client=httpx.Client(transport=transport))
    with genai.Client(api_key="k", http_options=options) as client:

        def read_by_sdk(data: bytes) -> Any:
            nonlocal answer
            answer = data
            return list(client.models.generate_content_stream(model="m", contents="Hi"))

        yield read_by_sdk


def candidates(responses: list[Any], index: int) -> list[Any]:
    return [
        candidate
        for response in responses
        for candidate in response.candidates or []
        if (candidate.index or 0) == index
    ]


def parts(responses: list[Any], index: int) -> list[Any]:
    return [
        part
        for candidate in candidates(responses, index)
        if candidate.content is not None
        for part in candidate.content.parts or []
    ]


@given(gemini_events())
def test_gemini_answer_reads_as_the_sdk_reads_it(gemini_sdk: Sdk, events: list[Event]) -> None:
    data = gemini_bytes(events)
    theirs = gemini_sdk(data)

    ours = completed("gemini", data, candidates_of(events))

    assert (ours.id, ours.model) == (theirs[0].response_id, theirs[0].model_version)
    assert [choice.index for choice in ours.choices] == list(range(candidates_of(events)))
    for choice in ours.choices:
        said = parts(theirs, choice.index)
        assert choice.message.content == ("".join(part.text for part in said if part.text and not part.thought) or None)
        assert choice.message.reasoning_content == (
            "".join(part.text for part in said if part.text and part.thought) or None
        )
        calls = [part.function_call for part in said if part.function_call is not None]
        assert calls_of(choice) == [(call.name, call.args or {}) for call in calls]
        ids = [call.id for call in choice.message.tool_calls or []]
        assert len(set(ids)) == len(ids)
        assert all(ids)
        assert [id_ for id_, call in zip(ids, calls, strict=True) if call.id] == [call.id for call in calls if call.id]
        reason = next(one.finish_reason for one in candidates(theirs, choice.index) if one.finish_reason)
        expected = _GEMINI_REASONS.get(reason.value, "content_filter")
        assert choice.finish_reason == ("tool_calls" if expected == "stop" and calls else expected)


@given(gemini_events())
def test_thought_signatures_are_those_the_sdk_keeps(gemini_sdk: Sdk, events: list[Event]) -> None:
    data = gemini_bytes(events)
    theirs = gemini_sdk(data)

    for choice in completed("gemini", data, candidates_of(events)).choices:
        said = parts(theirs, choice.index)
        calls = [part.thought_signature for part in said if part.function_call is not None]
        others = [part.thought_signature for part in said if part.function_call is None and part.thought_signature]
        assert [signature_of(call) for call in choice.message.tool_calls or []] == calls
        assert signature_of(choice.message) == (others[-1] if others else None)


def signature_of(value: Any) -> bytes | None:
    content = extra(value, "extra_content")
    return base64.b64decode(content["google"]["thought_signature"]) if content else None


@given(gemini_events())
def test_log_probabilities_are_those_of_the_sdk(gemini_sdk: Sdk, events: list[Event]) -> None:
    data = gemini_bytes(events)
    theirs = gemini_sdk(data)

    for choice in completed("gemini", data, candidates_of(events)).choices:
        expected = []
        for result in (one.logprobs_result for one in candidates(theirs, choice.index) if one.logprobs_result):
            tops = [top.candidates or [] for top in result.top_candidates or []] or [[]] * 2
            for chosen, top in zip(result.chosen_candidates, tops, strict=False):
                likeliest = [(token.token, token.log_probability) for token in top]
                expected.append((chosen.token, chosen.log_probability, likeliest))
        tokens = (choice.logprobs.content or []) if choice.logprobs else []
        assert [
            (token.token, token.logprob, [(one.token, one.logprob) for one in token.top_logprobs or []])
            for token in tokens
        ] == expected


@given(gemini_events())
def test_grounded_stretches_are_the_text_that_gemini_says_they_are(gemini_sdk: Sdk, events: list[Event]) -> None:
    data = gemini_bytes(events)
    theirs = gemini_sdk(data)

    for choice in completed("gemini", data, candidates_of(events)).choices:
        found = [one.grounding_metadata for one in candidates(theirs, choice.index) if one.grounding_metadata]
        expected = [
            (grounding.grounding_chunks[place].web.uri, support.segment.text)
            for grounding in found
            for support in grounding.grounding_supports or []
            for place in support.grounding_chunk_indices
        ]
        citations = [annotation.url_citation for annotation in choice.message.annotations or []]
        if expected:
            assert [
                (one.url, (choice.message.content or "")[one.start_index : one.end_index]) for one in citations if one
            ] == expected
        else:  # pages that support no stretch in particular
            pages = [chunk.web.uri for grounding in found for chunk in grounding.grounding_chunks or []]
            assert [one.url for one in citations if one] == pages


@given(gemini_events())
def test_gemini_usage_is_what_the_sdk_counts(gemini_sdk: Sdk, events: list[Event]) -> None:
    data = gemini_bytes(events)
    theirs = gemini_sdk(data)[-1].usage_metadata

    assert usage_of(completed("gemini", data, candidates_of(events))) == {
        "prompt": theirs.prompt_token_count + (theirs.tool_use_prompt_token_count or 0),
        "completion": theirs.candidates_token_count + (theirs.thoughts_token_count or 0),
        "total": theirs.total_token_count,
        "cached": theirs.cached_content_token_count,
        "written": None,
        "reasoning": theirs.thoughts_token_count,
    }


@given(gemini_events())
def test_array_of_responses_reads_as_the_streamed_ones(events: list[Event]) -> None:
    n = candidates_of(events)

    assert completed("gemini", json.dumps(events).encode(), n) == completed("gemini", gemini_bytes(events), n)


@given(gemini_events(), st.data())
def test_gemini_answer_gives_the_same_pieces_in_any_cut(events: list[Event], data: st.DataObject) -> None:
    whole = gemini_bytes(events)
    n = candidates_of(events)

    assert read("gemini", data.draw(st.composite(cut)(whole)), n) == read("gemini", [whole], n)


@given(gemini_events())
def test_openai_python_assembles_a_gemini_answer_as_we_do(events: list[Event]) -> None:
    pieces, _ = read("gemini", [gemini_bytes(events)], candidates_of(events))
    order = [choice.index for piece in pieces for choice in piece.chunk.choices]
    assume(list(dict.fromkeys(order)) == sorted(set(order)))  # openai-python fails on choices that begin in another

    assert openai_assembles(pieces) == without_extras(fold(piece.chunk for piece in pieces))
