from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentape.answer import WORDS, answer, chunks, expected_completion, expected_text, request_digest
from tokentape.errors import InvalidRequest
from tokentape.script import Script

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}


def ask(text: str = "Hi", **fields: object) -> dict[str, Any]:
    return {"model": "simulated", "messages": [{"role": "user", "content": text}], **fields}


def test_the_same_request_gets_the_same_answer() -> None:
    request = ask("Bonjour, ça va ?", n=2, simulate={"chunks": 50})

    assert chunks(request) == chunks(json.loads(json.dumps(request)))
    assert expected_completion(request) == expected_completion(request)


def test_an_answer_stays_the_same_from_release_to_release() -> None:
    completion = expected_completion(ask("Hi", simulate={"chunks": 5}))

    assert completion["id"] == "chatcmpl-a566c6e8a302e8ab5001b6465465f1ae"
    assert completion["choices"][0]["message"]["content"] == "a566c6e8a302:0 paper 👩‍🚀 👩‍🚀 rain"


def test_a_text_begins_with_the_digest_of_its_request_and_its_choice() -> None:
    request = ask(n=2)

    assert expected_text(request, 0).startswith(f"{request_digest(request)[:12]}:0 ")
    assert expected_text(request, 1).startswith(f"{request_digest(request)[:12]}:1 ")


@given(st.text(max_size=50))
def test_a_text_of_the_script_is_said_word_for_word(text: str) -> None:
    request = ask(n=2, simulate={"text": text})

    assert [expected_text(request, choice) for choice in (0, 1)] == [text, text]
    pieces = [part["delta"].get("content") for chunk in chunks(request) for part in chunk["choices"]]
    assert [piece for piece in pieces if piece] == [word for word in re.findall(r"\s*\S+|\s+", text) for _ in (0, 1)]


def test_tools_that_are_called_stand_in_place_of_a_text() -> None:
    (choice,) = expected_completion(ask(tools=[TIME], simulate={"text": "Noon", "tool_calls": 1}))["choices"]

    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_requests_have_two_answers(one: str, other: str) -> None:
    same = expected_text(ask(one.encode(errors="replace").decode())) == expected_text(
        ask(other.encode(errors="replace").decode())
    )

    assert same == (one.encode(errors="replace") == other.encode(errors="replace"))


def test_a_request_is_named_by_model_and_messages_alone() -> None:
    plain, other = ask(), ask(temperature=0, stream=True, simulate={"interval_ms": 5, "fault": "truncate"})

    assert request_digest(plain) == request_digest(other)
    assert expected_completion(plain) == expected_completion(other)
    assert request_digest(plain) != request_digest({**plain, "model": "another"})


def test_text_is_not_only_ascii() -> None:
    text = expected_text(ask(simulate={"chunks": 200}))

    assert len(WORDS) == len(set(WORDS)) == 64
    assert {len(character.encode()) for character in text} == {1, 2, 3, 4}


@pytest.mark.parametrize("count", [0, 1, 2, 37])
def test_each_choice_has_as_many_content_chunks_as_the_script_says(count: int) -> None:
    sent = chunks(ask(n=3, simulate={"chunks": count}))

    for index in range(3):
        mine = [chunk["choices"][0] for chunk in sent if chunk["choices"][0]["index"] == index]
        assert sum(bool(choice["delta"].get("content")) for choice in mine) == count
        assert mine[-1]["finish_reason"] == "stop"


def test_choices_are_interleaved() -> None:
    sent = chunks(ask(n=3, simulate={"chunks": 2}))

    assert [chunk["choices"][0]["index"] for chunk in sent] == [0, 1, 2] * 4


@given(st.integers(1, 60), st.integers(1, 40))
def test_pieces_have_exactly_the_bytes_asked_for(count: int, size: int) -> None:
    sent = chunks(ask(simulate={"chunks": count, "chunk_bytes": size}))

    pieces = [chunk["choices"][0]["delta"].get("content") for chunk in sent[1:-1]]

    assert [len(piece.encode()) for piece in pieces] == [size] * count


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_cuts_reasoning_and_content_and_ends_with_length(field: str) -> None:
    request = ask(simulate={"chunks": 10, "reasoning_chunks": 4})

    cut = expected_completion({**request, field: 6})

    choice, whole = cut["choices"][0], expected_completion(request)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["reasoning_content"] == whole["message"]["reasoning_content"]
    assert whole["message"]["content"].startswith(choice["message"]["content"])
    assert cut["usage"]["completion_tokens"] == 6


def test_an_answer_that_fits_max_tokens_is_not_cut() -> None:
    request = ask(simulate={"chunks": 10})

    assert expected_completion({**request, "max_tokens": 10}) == expected_completion(request)


def test_max_tokens_cuts_tool_calls_too() -> None:
    cut = expected_completion(ask(tools=[WEATHER], max_tokens=1, simulate={"tool_calls": 2}))

    calls = cut["choices"][0]["message"]["tool_calls"]
    assert len(calls) == 1
    assert len(calls[0]["function"]["arguments"]) == 12
    assert cut["choices"][0]["finish_reason"] == "length"


def test_parallel_tool_calls_take_the_tools_in_turn_and_fit_their_parameters() -> None:
    message = expected_completion(ask(tools=[WEATHER, TIME], simulate={"tool_calls": 3}))["choices"][0]["message"]

    calls = message["tool_calls"]
    arguments = json.loads(calls[0]["function"]["arguments"])
    assert message["content"] is None
    assert [call["function"]["name"] for call in calls] == ["weather", "time", "weather"]
    assert len({call["id"] for call in calls}) == 3
    assert set(arguments) == {"city", "unit"}
    assert arguments["city"] in WORDS
    assert arguments["unit"] in ("C", "F")
    assert json.loads(calls[1]["function"]["arguments"]) == {}


def test_tool_calls_are_streamed_in_fragments_that_add_up() -> None:
    request = ask(tools=[WEATHER], simulate={"tool_calls": 2})
    whole = expected_completion(request)["choices"][0]["message"]["tool_calls"]

    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(request)]

    heads = [call for delta in deltas for call in delta.get("tool_calls", ()) if "id" in call]
    assert [head["index"] for head in heads] == [0, 1]
    for index in (0, 1):
        parts = [call for delta in deltas for call in delta.get("tool_calls", ()) if call["index"] == index]
        assert len(parts) > 2
        assert "".join(part["function"]["arguments"] for part in parts) == whole[index]["function"]["arguments"]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 0),
        ({"simulate": {"tool_calls": 2}}, 2),
        ({"simulate": {"tool_calls": 2}, "tool_choice": "none"}, 0),
        ({"simulate": {"tool_calls": 2}, "parallel_tool_calls": False}, 1),
        ({"tool_choice": "required"}, 1),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, 1),
    ],
)
def test_tools_are_called_only_where_asked_for(fields: dict[str, Any], count: int) -> None:
    choice = expected_completion(ask(tools=[WEATHER], **fields))["choices"][0]

    assert len(choice["message"].get("tool_calls", [])) == count
    assert choice["finish_reason"] == ("tool_calls" if count else "stop")


def test_a_script_of_tool_calls_means_nothing_without_tools() -> None:
    assert expected_text(ask(simulate={"tool_calls": 2})) == expected_text(ask())


def test_usage_counts_every_choice_and_stands_in_the_last_chunk_alone() -> None:
    request = ask(n=2, stream_options={"include_usage": True}, simulate={"chunks": 4, "reasoning_chunks": 3})

    *others, last = chunks(request)

    assert all(chunk["usage"] is None for chunk in others)
    assert last["choices"] == []
    assert last["usage"] == expected_completion(request)["usage"]
    assert last["usage"]["completion_tokens"] == 14
    assert last["usage"]["completion_tokens_details"]["reasoning_tokens"] == 6
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 14


def test_no_chunk_carries_usage_unasked() -> None:
    assert not any("usage" in chunk for chunk in chunks(ask()))


def test_defaults_hold_where_the_request_says_nothing() -> None:
    defaults = Script(chunks=3, reasoning_chunks=2)

    assert len(chunks(ask(), defaults)) == 1 + 2 + 3 + 1
    assert len(chunks(ask(simulate={"reasoning_chunks": 0}), defaults)) == 1 + 3 + 1


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "model"),
        ({"model": "m", "messages": []}, "messages"),
        (ask(n=0), "n"),
        (ask(max_tokens=0), "max_tokens"),
        (ask(simulate=[]), "simulate"),
        (ask(simulate={"chunk": 1}), "simulate.chunk"),
        (ask(simulate={"fault": "meteor"}), "simulate.fault.0"),
        (ask(simulate={"interval_ms": -1}), "simulate.interval_ms"),
        (ask(simulate={"chunks": 1_000_000, "chunk_bytes": 1_000}), "simulate"),
        (ask(tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "x"}}), "tool_choice"),
    ],
)
def test_a_wrong_request_is_refused_by_field(request_: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        answer(request_)

    assert caught.value.field == field


def test_several_faults_take_turns_and_stop_after_fault_times() -> None:
    script = Script(fault=("status", "split_bytes", "truncate"), fault_times=3)

    met = [script.strikes(call) for call in (1, 2, 3, 4)]

    assert met == [("status", True), ("truncate", True), ("status", True), (None, False)]
