"""The fold, field by field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokentape.chunk import ChatCompletionChunk, Usage
from tokentape.completion import ChatCompletion, Fold, fold


def chunk(*choices: dict[str, Any], **fields: object) -> ChatCompletionChunk:
    return ChatCompletionChunk.model_validate({"id": "c1", "created": 7, "model": "m", **fields, "choices": choices})


def delta(index: int = 0, **fields: object) -> ChatCompletionChunk:
    """A chunk with one delta of one choice."""
    return chunk({"index": index, "delta": fields})


def finish(reason: str | None, index: int = 0) -> ChatCompletionChunk:
    return chunk({"index": index, "delta": {}, "finish_reason": reason})


def message_of(*chunks: ChatCompletionChunk) -> dict[str, Any]:
    """The message of choice 0, as JSON."""
    message: dict[str, Any] = json.loads(fold(chunks).to_json())["choices"][0]["message"]
    return message


def call(index: int, name: str | None = None, arguments: str | None = None, **fields: object) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"index": index, "function": function, **fields}


def test_a_plain_answer_is_a_chat_completion() -> None:
    chunks = [delta(role="assistant", content=""), delta(content="Hel"), delta(content="lo"), finish("stop")]

    completion = fold(chunks)

    assert completion.text == "Hello"
    assert json.loads(completion.to_json()) == {
        "id": "c1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
    }


def test_no_chunks_make_an_empty_completion() -> None:
    completion = fold([])

    assert completion.choices == []
    assert completion.text == ""


def test_a_completion_is_read_back_from_its_json() -> None:
    completion = fold([delta(content="a", x_more=[1]), finish("stop")])

    assert ChatCompletion.model_validate_json(completion.to_json()) == completion


def test_content_that_was_never_sent_is_null() -> None:
    assert message_of(delta(role="assistant", content=None), delta())["content"] is None


def test_content_that_was_only_empty_is_empty() -> None:
    assert message_of(delta(content=None), delta(content=""))["content"] == ""


def test_a_null_between_pieces_of_content_adds_nothing() -> None:
    assert message_of(delta(content="a"), delta(content=None), delta(content="b"))["content"] == "ab"


def test_a_role_that_is_repeated_stands_once() -> None:
    chunks = [delta(role="", content="a"), delta(role="assistant", content="b"), delta(role="assistant", content="c")]

    message = message_of(*chunks)

    assert (message["role"], message["content"]) == ("assistant", "abc")


def test_a_message_without_a_role_is_the_assistants() -> None:
    assert message_of(delta(content="a"))["role"] == "assistant"


def test_refusal_pieces_are_joined() -> None:
    message = message_of(delta(refusal="I "), delta(refusal="won't"))

    assert (message["refusal"], message["content"]) == ("I won't", None)


def test_reasoning_pieces_are_joined_beside_the_content() -> None:
    chunks = [delta(content=None, reasoning_content="Let "), delta(reasoning_content="me"), delta(content="42")]

    message = message_of(*chunks)

    assert (message["reasoning_content"], message["content"]) == ("Let me", "42")


def test_parallel_tool_calls_are_kept_apart_by_index() -> None:
    chunks = [
        delta(tool_calls=[call(1, "g", "", id="b", type="function"), call(0, "f", "", id="a", type="function")]),
        delta(tool_calls=[call(0, arguments='{"x"')]),
        delta(tool_calls=[call(1, arguments="{}"), call(0, arguments=":1}")]),
    ]

    assert message_of(*chunks)["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_two_pieces_of_one_tool_call_in_one_chunk_are_joined() -> None:
    message = message_of(delta(tool_calls=[call(0, "f", "{", id="a"), call(0, arguments="}")]))

    assert message["tool_calls"][0]["function"]["arguments"] == "{}"


def test_labels_of_a_tool_call_that_are_repeated_stand_once() -> None:
    chunks = [
        delta(tool_calls=[call(0, "get_time", "{", id="a", type="function")]),
        delta(tool_calls=[call(0, "get_time", "}", id="a", type="function")]),
        delta(tool_calls=[call(0, "", "", id="")]),
    ]

    assert message_of(*chunks)["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    ]


def test_a_function_name_in_pieces_is_joined() -> None:
    message = message_of(delta(tool_calls=[call(0, "get_", id="a")]), delta(tool_calls=[call(0, "time")]))

    assert message["tool_calls"][0]["function"]["name"] == "get_time"


def test_a_tool_call_has_all_that_the_api_says_it_has() -> None:
    message = message_of(delta(tool_calls=[{"index": 0, "id": None, "type": None, "function": {"name": "f"}}]))

    assert message["tool_calls"] == [{"id": "", "type": "function", "function": {"name": "f", "arguments": ""}}]


def test_a_custom_tool_call_keeps_its_input_and_opaque_extras() -> None:
    chunks = [
        delta(tool_calls=[{"index": 0, "id": "a", "type": "custom", "custom": {"name": "sh", "input": "l"}}]),
        delta(tool_calls=[{"index": 0, "custom": {"input": "s"}, "extra_content": {"google": {"signature": "zz"}}}]),
    ]

    assert message_of(*chunks)["tool_calls"] == [
        {
            "id": "a",
            "type": "custom",
            "custom": {"name": "sh", "input": "ls"},
            "extra_content": {"google": {"signature": "zz"}},
        }
    ]


@pytest.mark.parametrize("nothing", [None, []])
def test_no_tool_calls_leave_no_trace(nothing: list[Any] | None) -> None:
    assert "tool_calls" not in message_of(delta(content="a", tool_calls=nothing))


def test_a_legacy_function_call_is_joined() -> None:
    chunks = [delta(function_call={"name": "f", "arguments": ""}), delta(function_call={"arguments": "{}"})]

    assert message_of(*chunks)["function_call"] == {"name": "f", "arguments": "{}"}


def test_a_legacy_function_call_has_all_that_the_api_says_it_has() -> None:
    assert message_of(delta(function_call={"name": "f"}))["function_call"] == {"name": "f", "arguments": ""}


def test_audio_data_and_transcript_are_joined() -> None:
    chunks = [
        delta(audio={"id": "audio_1", "transcript": "Hel"}),
        delta(audio={"id": "audio_1", "data": "UklG"}),
        delta(audio={"data": "Rg==", "transcript": "lo"}),
        delta(audio={"expires_at": 1}),
        delta(audio={"expires_at": 2}),
    ]

    audio = message_of(*chunks)["audio"]

    assert audio == {"id": "audio_1", "data": "UklGRg==", "transcript": "Hello", "expires_at": 2}


def test_annotations_are_extended() -> None:
    first, second = ({"type": "url_citation", "url_citation": {"url": url}} for url in ("a", "b"))

    message = message_of(delta(annotations=[first]), delta(annotations=[]), delta(annotations=[second]))

    assert message["annotations"] == [first, second]


def test_logprobs_are_extended() -> None:
    tokens: list[dict[str, Any]] = [
        {"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []} for token in "abc"
    ]
    chunks = [
        chunk({"index": 0, "delta": {"content": "ab"}, "logprobs": {"content": tokens[:2], "refusal": None}}),
        chunk({"index": 0, "delta": {"refusal": "c"}, "logprobs": {"content": None, "refusal": tokens[2:]}}),
        chunk({"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}),
    ]

    choice = json.loads(fold(chunks).to_json())["choices"][0]

    assert choice["logprobs"] == {"content": tokens[:2], "refusal": tokens[2:]}


def test_logprobs_always_say_content_and_refusal() -> None:
    choice = json.loads(fold([chunk({"index": 0, "logprobs": {"content": []}})]).to_json())["choices"][0]

    assert choice["logprobs"] == {"content": [], "refusal": None}


def test_choices_are_ordered_by_index_whatever_came_first() -> None:
    chunks = [delta(2, content="c"), chunk({"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {}})]

    completion = fold(chunks)

    assert [(choice.index, choice.message.content) for choice in completion.choices] == [(0, None), (1, "b"), (2, "c")]
    assert completion.text == ""


def test_indices_are_keys_and_need_not_be_dense() -> None:
    completion = fold([delta(10**9, content="far", tool_calls=[call(10**9, "f")])])

    assert completion.choices[0].index == 10**9
    assert completion.text == ""


def test_the_first_finish_reason_stays() -> None:
    completion = fold([finish(""), finish("tool_calls"), finish(None), finish("stop")])

    assert completion.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("reason", [None, ""])
def test_an_unfinished_choice_has_no_finish_reason(reason: str | None) -> None:
    assert fold([finish(reason)]).choices[0].finish_reason is None


def test_the_last_usage_stays_and_nothing_is_summed() -> None:
    chunks = [chunk(usage={"total_tokens": 3, "x_cost": 0.5}), chunk(usage={"total_tokens": 9}), chunk(usage=None)]

    assert fold(chunks).usage == Usage(total_tokens=9)


def test_what_the_stream_is_called_comes_from_the_first_that_says_it() -> None:
    chunks = [
        chunk(id="", created=0, model="", object="", service_tier=None),
        chunk(id="a", created=1, model="m1", service_tier="flex"),
        chunk(id="b", created=2, model="m2", service_tier="default"),
    ]

    completion = fold(chunks)

    assert (completion.id, completion.created, completion.model) == ("a", 1, "m1")
    assert (completion.service_tier, completion.object) == ("flex", "chat.completion")


def test_the_last_fingerprint_stays() -> None:
    chunks = [chunk(system_fingerprint=fingerprint) for fingerprint in ("a", "b", None)]

    assert fold(chunks).system_fingerprint == "b"


def test_moderation_survives_and_obfuscation_does_not() -> None:
    completion = fold([chunk(moderation={"input": {}}, obfuscation="x"), chunk(moderation=None, obfuscation="y")])

    assert completion.moderation == {"input": {}}
    assert b"obfuscation" not in completion.to_json()


def test_unknown_fields_of_the_stream_keep_their_last_value() -> None:
    chunks = [
        chunk(provider="a", citations=["u"], x_groq={"id": "r", "usage": None}, nothing=None),
        chunk(provider=None, citations=["u", "v"], x_groq={"usage": {"total_tokens": 2}}),
    ]

    assert fold(chunks).model_extra == {
        "provider": "a",
        "citations": ["u", "v"],
        "x_groq": {"id": "r", "usage": {"total_tokens": 2}},
        "nothing": None,
    }


def test_unknown_fields_of_a_choice_keep_their_last_value() -> None:
    chunks = [
        chunk({"index": 0, "content_filter_results": {"hate": {"filtered": False}}, "matched": 1}),
        chunk({"index": 0, "content_filter_results": {}, "matched": 2}),
    ]

    assert fold(chunks).choices[0].model_extra == {
        "content_filter_results": {"hate": {"filtered": False}},
        "matched": 2,
    }


def test_a_message_that_a_chunk_carries_beside_its_delta_does_not_replace_the_assembled_one() -> None:
    completion = fold([chunk({"index": 0, "delta": {"content": "a"}, "message": {"content": "whole"}})])

    assert completion.text == "a"


def test_unknown_fields_of_a_delta_grow() -> None:
    chunks = [
        delta(signature="ab", parts=["x"], meta={"n": 1, "t": "a"}, flag=True, nothing=None),
        delta(signature="cd", parts=["y"], meta={"n": 2, "t": "b"}, flag=False),
    ]

    message = message_of(*chunks)

    assert {name: message[name] for name in ("signature", "parts", "meta", "flag", "nothing")} == {
        "signature": "abcd",
        "parts": ["x", "y"],
        "meta": {"n": 3, "t": "ab"},
        "flag": False,
        "nothing": None,
    }


def test_reasoning_details_can_be_sent_back() -> None:
    chunks = [
        delta(reasoning_details=[{"type": "reasoning.text", "text": "Let ", "format": "f-v1", "index": 0}]),
        delta(reasoning_details=[{"type": "reasoning.text", "text": "me", "format": "f-v1", "index": 0}]),
        delta(reasoning_details=[{"type": "reasoning.text", "signature": "zz", "format": "f-v1", "index": 0}]),
    ]

    assert message_of(*chunks)["reasoning_details"] == [
        {"type": "reasoning.text", "text": "Let me", "signature": "zz", "format": "f-v1", "index": 0}
    ]


def test_a_null_in_an_unknown_field_adds_nothing() -> None:
    chunks = [
        delta(details=[{"index": 0, "type": "t", "text": "a", "more": None}]),
        delta(details=[{"index": 0, "type": None, "text": None}], more=None),
    ]

    message = message_of(*chunks)

    assert message["details"] == [{"index": 0, "type": "t", "text": "a", "more": None}]


@pytest.mark.parametrize("value", [1, True, ["b"], {"b": 1}, None])
def test_a_value_that_does_not_fit_what_came_before_is_dropped(value: object) -> None:
    assert message_of(delta(x_more="a"), delta(x_more=value))["x_more"] == "a"


def test_text_can_be_asked_for_at_any_time_and_for_any_choice() -> None:
    state = Fold()
    state.add(delta(1, content="b"))
    before = (state.text(), state.text(1))

    state.add(
        chunk({"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"role": "assistant", "content": "c"}})
    )

    assert before == ("", "b")
    assert (state.text(), state.text(1), state.text(5)) == ("a", "bc", "")


def test_a_completion_does_not_change_with_the_chunks_after_it() -> None:
    state = Fold()
    more = {"a": {"n": 1}}
    state.add(chunk({"index": 0, "delta": {"content": "a", "parts": [1], "x_more": more}, "extra": more}, top=more))
    completion = state.completion()
    before = completion.to_json()

    state.add(delta(content="b", parts=[2], x_more={"a": {"n": 2}}))
    state.add(chunk({"index": 0, "extra": {"a": {"n": 2}}}, top={"a": {"n": 2}}))

    assert completion.to_json() == before
    assert state.completion().to_json() != before
