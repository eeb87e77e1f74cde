"""The chunk object: what it takes, what it refuses, and that it goes back to the JSON that it came from."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tokentape.chunk import ChatCompletionChunk, Delta, parse_chunk

FULL: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1730000000,
    "model": "m-1",
    "system_fingerprint": "fp_1",
    "service_tier": "default",
    "obfuscation": "x7",
    "moderation": {"input": {"type": "error", "code": "c", "message": "m"}},
    "choices": [
        {
            "index": 2,
            "delta": {
                "role": "assistant",
                "content": "Grüße, 世界 🌍",
                "refusal": None,
                "reasoning_content": "hm",
                "tool_calls": [
                    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a'}}
                ],
                "function_call": {"name": "g", "arguments": "{}"},
                "audio": {"id": "audio_1", "data": "UklGRg==", "transcript": "hm", "expires_at": 1730003600},
                "annotations": [
                    {
                        "type": "url_citation",
                        "url_citation": {"start_index": 0, "end_index": 5, "title": "t", "url": "https://example.org"},
                    }
                ],
            },
            "logprobs": {
                "content": [
                    {
                        "token": "Gr",
                        "logprob": -0.25,
                        "bytes": [71, 114],
                        "top_logprobs": [{"token": "Gr", "logprob": -0.25, "bytes": None}],
                    }
                ],
                "refusal": None,
            },
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 1, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 4, "accepted_prediction_tokens": 0, "audio_tokens": None},
    },
}

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
json_values = st.recursive(
    scalars | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
# No field of the API begins with x_, so these are unknown wherever they stand.
unknown = st.dictionaries(texts.map("x_{}".format), json_values, max_size=2)


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with any of the fields, and unknown ones beside them."""
    return st.builds(lambda known, more: {**known, **more}, st.fixed_dictionaries({}, optional=fields), unknown)


def positioned(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda index, fields: {"index": index, **fields}, st.integers(0, 2**40), inner)


nullable_texts = st.none() | texts
counts = st.integers(0, 10**9)
functions = objects(name=nullable_texts, arguments=nullable_texts)
tool_calls = positioned(objects(id=nullable_texts, type=nullable_texts, function=st.none() | functions))
tokens = st.builds(
    lambda token, more: {"token": token, **more},
    texts,
    objects(logprob=st.none() | st.floats(-100, 0), bytes=st.none() | st.lists(st.integers(0, 255), max_size=3)),
)
deltas = objects(
    role=nullable_texts,
    content=nullable_texts,
    refusal=nullable_texts,
    reasoning_content=nullable_texts,
    tool_calls=st.none() | st.lists(tool_calls, max_size=2),
    function_call=st.none() | functions,
    audio=st.none() | objects(id=nullable_texts, data=nullable_texts, expires_at=st.none() | counts),
    annotations=st.none() | st.lists(objects(type=nullable_texts, url_citation=objects(url=texts)), max_size=2),
)
logprobs = objects(content=st.none() | st.lists(tokens, max_size=2), refusal=st.none() | st.lists(tokens, max_size=2))
choices = positioned(objects(delta=deltas, logprobs=st.none() | logprobs, finish_reason=nullable_texts))
usages = objects(
    prompt_tokens=counts,
    total_tokens=counts,
    prompt_tokens_details=st.none() | objects(cached_tokens=st.none() | counts),
    completion_tokens_details=st.none() | objects(reasoning_tokens=st.none() | counts),
)
chunks = st.builds(
    lambda choices, more: {"choices": choices, **more},
    st.lists(choices, max_size=3),
    objects(
        id=texts,
        object=texts,
        created=counts,
        model=texts,
        system_fingerprint=nullable_texts,
        service_tier=nullable_texts,
        usage=st.none() | usages,
        moderation=st.none() | st.dictionaries(texts, json_values, max_size=2),
        obfuscation=nullable_texts,
    ),
)


@given(chunks)
def test_any_chunk_goes_back_to_its_json(value: dict[str, Any]) -> None:
    data = json.dumps(value)

    assert json.loads(ChatCompletionChunk.model_validate_json(data).to_json()) == value
    assert json.loads(parse_chunk(data.encode()).to_json()) == value


def test_every_field_of_the_api_is_typed() -> None:
    chunk = parse_chunk(json.dumps(FULL))

    choice, usage = chunk.choices[0], chunk.usage
    assert (chunk.id, chunk.created, chunk.model, chunk.service_tier) == ("chatcmpl-1", 1730000000, "m-1", "default")
    assert (choice.index, choice.finish_reason, choice.delta.content) == (2, "stop", "Grüße, 世界 🌍")
    assert choice.delta.tool_calls is not None
    assert choice.delta.tool_calls[0].function is not None
    assert choice.delta.tool_calls[0].function.arguments == '{"a'
    assert choice.delta.function_call is not None
    assert choice.delta.function_call.name == "g"
    assert choice.delta.audio is not None
    assert choice.delta.audio.expires_at == 1730003600
    assert choice.delta.annotations is not None
    assert choice.delta.annotations[0].url_citation is not None
    assert choice.delta.annotations[0].url_citation.url == "https://example.org"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert choice.logprobs.content[0].top_logprobs is not None
    assert choice.logprobs.content[0].top_logprobs[0].logprob == -0.25
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 2
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 4
    assert json.loads(chunk.to_json()) == FULL


def test_absent_and_null_are_kept_apart() -> None:
    data = b'{"choices":[{"index":0,"delta":{"content":null},"finish_reason":null}]}'

    chunk = parse_chunk(data)

    assert chunk.to_json() == data


def test_text_is_written_as_utf_8() -> None:
    data = '{"choices":[{"index":0,"delta":{"content":"é🌍"}}]}'

    assert parse_chunk(data).to_json() == data.encode()


def test_unknown_words_pass() -> None:
    data = (
        b'{"object":"","service_tier":"warp","choices":[{"index":0,"delta":{"role":"oracle"},"finish_reason":"eos"}]}'
    )

    chunk = parse_chunk(data)

    assert chunk.choices[0].finish_reason == "eos"
    assert json.loads(chunk.to_json()) == json.loads(data)


def test_a_choice_without_a_delta_says_nothing() -> None:
    chunk = parse_chunk(b'{"choices":[{"index":0,"content_filter_offsets":{"start_offset":1}}]}')

    assert chunk.choices[0].delta == Delta()
    assert b"delta" not in chunk.to_json()


def test_a_whole_float_is_a_time() -> None:
    assert parse_chunk(b'{"created":1730000000.0,"choices":[]}').created == 1730000000


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ('{"error":{"message":"no"}}', "choices"),
        ('{"choices":null}', "choices"),
        ('{"choices":{}}', "choices"),
        ('{"choices":["secret"]}', "choices.0"),
        ('{"choices":[{"delta":{}}]}', "choices.0.index"),
        ('{"choices":[{"index":"0"}]}', "choices.0.index"),
        ('{"choices":[{"index":true}]}', "choices.0.index"),
        ('{"choices":[{"index":-1}]}', "choices.0.index"),
        ('{"choices":[{"index":0,"delta":"secret"}]}', "choices.0.delta"),
        ('{"choices":[{"index":0,"delta":{"content":7}}]}', "choices.0.delta.content"),
        ('{"choices":[{"index":0,"delta":{"content":["secret"]}}]}', "choices.0.delta.content"),
        ('{"choices":[{"index":0,"delta":{"tool_calls":[{"id":"secret"}]}}]}', "choices.0.delta.tool_calls.0.index"),
        (
            '{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":{"a":"secret"}}}]}}]}',
            "choices.0.delta.tool_calls.0.function.arguments",
        ),
        ('{"choices":[],"usage":"secret"}', "usage"),
        ('{"choices":[],"created":1.5}', "created"),
    ],
)
def test_nonsense_is_refused_by_field_and_without_its_content(data: str, field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: ") as caught:
        parse_chunk(data)

    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("data", [b"", b"[DONE]", b"[]", b"null", b"secret", b'{"choices":[', b"\xff\xfe", "\ud800"])
def test_what_is_no_json_object_is_refused(data: bytes | str) -> None:
    with pytest.raises(ValueError, match=r"not a chat\.completion\.chunk") as caught:
        parse_chunk(data)

    assert "secret" not in str(caught.value)


def test_validation_errors_of_the_model_do_not_quote_content() -> None:
    with pytest.raises(ValidationError) as caught:
        ChatCompletionChunk.model_validate_json(b'{"choices":[{"index":0,"delta":{"content":["secret"]}}]}')

    assert "secret" not in str(caught.value)


def test_chunks_are_frozen() -> None:
    chunk = parse_chunk(b'{"choices":[]}')

    with pytest.raises(ValidationError, match="frozen"):
        chunk.id = "other"  # type: ignore[misc]
