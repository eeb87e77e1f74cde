"""The OpenAI dialect where the recorded cases leave something open: how it asks, and what it makes of odd answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokentape.completion import ChatCompletion, fold
from tokentape.settings import Upstream
from tokentape_worker.dialects import Call, Piece, Verdict
from tokentape_worker.dialects.openai import OpenAI

JOB_ID = "job_0123456789abcdef0123456789abcdef"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m1"}


def chunk(delta: Any = None, finish_reason: Any = None, /, index: int = 0, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta if delta is not None else {}, "finish_reason": finish_reason}
    return {**HEAD, "choices": [choice], **fields}


def tool(**entry: Any) -> dict[str, Any]:
    return chunk({"tool_calls": [entry]})


def events(*values: Any) -> bytes:
    texts = (value if isinstance(value, str) else json.dumps(value) for value in values)
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def read(data: bytes, *, n: int = 1, max_event_bytes: int = 1 << 20) -> tuple[list[Piece], Verdict]:
    adapter = OpenAI().adapter(Call(JOB_ID, "asked-for", created=5, n=n, max_event_bytes=max_event_bytes))
    pieces = adapter.feed(data)
    last, verdict = adapter.close()
    return pieces + last, verdict


def completed(*values: Any, n: int = 1) -> ChatCompletion:
    pieces, verdict = read(events(*values), n=n)
    assert verdict.error is None, verdict.error
    return fold(piece.chunk for piece in pieces)


def calls_of(completion: ChatCompletion) -> list[tuple[str, str, str]]:
    calls = completion.choices[0].message.tool_calls or []
    return [(call.id, call.function.name, call.function.arguments) for call in calls if call.function]


# ---- asking


def test_request_is_streamed_with_usage() -> None:
    wire = OpenAI().request(BODY, Upstream(base_url="http://u/v1"))

    assert wire.path == "/chat/completions"
    assert wire.body == {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    assert wire.streamed


def test_request_leaves_the_body_of_the_job_as_it_was() -> None:
    body = {**BODY, "stream_options": {"x": 1}}

    OpenAI().request(body, Upstream())

    assert body == {**BODY, "stream_options": {"x": 1}}


def test_stream_options_of_the_job_win() -> None:
    wire = OpenAI().request({**BODY, "stream_options": {"include_usage": False, "x": 1}}, Upstream())

    assert wire.body["stream_options"] == {"include_usage": False, "x": 1}


def test_null_stream_options_are_not_sent() -> None:
    wire = OpenAI().request({**BODY, "stream_options": None}, Upstream())

    assert "stream_options" not in wire.body


def test_obfuscation_is_refused_where_it_is_known() -> None:
    wire = OpenAI().request(BODY, Upstream(base_url="https://api.openai.com/v1"))

    assert wire.body["stream_options"] == {"include_usage": True, "include_obfuscation": False}


def test_job_that_does_not_stream_is_asked_for_as_it_is() -> None:
    wire = OpenAI().request({**BODY, "stream": False}, Upstream())

    assert wire.body == {**BODY, "stream": False}
    assert not wire.streamed


# ---- what is published


def test_clean_chunks_are_published_byte_for_byte() -> None:
    texts = [json.dumps(value, indent=indent) for indent, value in enumerate(
        [chunk({"role": "assistant", "content": ""}), chunk({"content": "é"}), chunk({}, "stop")]
    )]  # fmt: skip
    data = "".join("".join(f"data: {line}\n" for line in text.split("\n")) + "\n" for text in texts)

    pieces, _ = read(data.encode() + b"data: [DONE]\n\n")

    assert [piece.data.decode() for piece in pieces] == texts


def test_unknown_fields_survive_on_every_level() -> None:
    odd = chunk({"content": "a", "x1": 1}, x3={"y": [None]})
    odd["choices"][0]["x2"] = 2

    pieces, _ = read(events(odd, chunk({"content": "b", "role": "", "x4": 4}), "[DONE]"))

    assert json.loads(pieces[0].data) == odd
    assert json.loads(pieces[1].data)["choices"][0]["delta"] == {"content": "b", "role": None, "x4": 4}


def test_job_stands_in_for_what_the_upstream_leaves_out() -> None:
    pieces, verdict = read(events({"choices": [{"delta": {"content": "a"}}]}, "[DONE]"))

    first = pieces[0].chunk
    assert (first.id, first.model, first.created) == ("chatcmpl-0123456789abcdef0123456789abcdef", "asked-for", 5)
    assert verdict.completed


def test_id_model_and_created_are_those_of_the_first_chunk() -> None:
    completion = completed(
        {**chunk({"content": "a"}), "created": 7.9},
        {**chunk({"content": "b"}, "stop"), "id": "c2", "model": "m2", "created": 9},
    )

    assert (completion.id, completion.model, completion.created) == ("c1", "m1", 7)


def test_chunk_without_id_and_choices_waits_for_the_id() -> None:
    pieces, _ = read(events({"id": "", "choices": [], "prompt_filter_results": [1]}, chunk({"content": "a"}, "stop")))

    assert [piece.chunk.id for piece in pieces] == ["c1", "c1"]
    assert json.loads(pieces[0].data)["prompt_filter_results"] == [1]


def test_usage_outlives_a_null_after_it() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 9}

    pieces, _ = read(
        events(chunk({"content": "a"}, "stop", usage=usage), {**HEAD, "choices": [], "usage": None}, "[DONE]")
    )

    assert [json.loads(piece.data)["usage"] for piece in pieces] == [usage, usage]


@pytest.mark.parametrize(
    ("sent", "name", "count"),
    [
        ({"cached_tokens": 3}, "cached_tokens", 3),
        ({"cache_read_input_tokens": 3}, "cached_tokens", 3),
        ({"cache_creation_input_tokens": 4}, "cache_write_tokens", 4),
        ({"prompt_cache_hit_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}, "cached_tokens", 5),
        ({"prompt_cache_hit_tokens": "3", "prompt_tokens_details": "none"}, "cached_tokens", 3),
    ],
)
def test_usage_is_given_under_the_names_of_the_api(sent: dict[str, Any], name: str, count: int) -> None:
    completion = completed(chunk({"content": "a"}, "stop", usage={"prompt_tokens": 9.0, **sent}))

    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 9
    assert getattr(completion.usage.prompt_tokens_details, name) == count


def test_usage_without_counts_is_none() -> None:
    assert completed(chunk({"content": "a"}, "stop", usage={})).usage is None


def test_field_of_a_wrong_type_costs_only_itself() -> None:
    pieces, verdict = read(events(chunk({"content": "a"}, "stop", system_fingerprint=5, service_tier="odd")))

    assert verdict.completed
    assert "system_fingerprint" not in json.loads(pieces[0].data)
    assert pieces[0].chunk.service_tier == "odd"


def test_numbers_that_json_does_not_know_are_not_published() -> None:
    data = events(chunk({"content": "a"}, "stop", x="N", y="I")).replace(b'"N"', b"NaN").replace(b'"I"', b"-Infinity")

    pieces, _ = read(data)

    assert json.loads(pieces[0].data, parse_constant=pytest.fail)["y"] == -9999.0


def test_invalid_utf8_is_replaced() -> None:
    pieces, _ = read(events(chunk({"content": "<>"}, "stop")).replace(b"<>", b"\xff"))

    assert pieces[0].chunk.choices[0].delta.content == "\ufffd"
    assert pieces[0].data.decode()


def test_half_a_surrogate_pair_is_replaced() -> None:
    pieces, _ = read(events(chunk({"content": "\ud83d"}, "stop")))

    assert pieces[0].chunk.choices[0].delta.content == "\ufffd"


def test_role_comes_once() -> None:
    pieces, _ = read(events(*[chunk({"role": "assistant", "content": "a"})] * 3, "[DONE]"))

    assert [json.loads(piece.data)["choices"][0]["delta"].get("role") for piece in pieces[:3]] == [
        "assistant",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("sent", "published"),
    [
        ("STOP", "stop"),
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("safety", "content_filter"),
        ("eos", "stop"),
    ],
)
def test_finish_reasons_of_other_vocabularies_are_translated(sent: str, published: str) -> None:
    assert completed(chunk({"content": "a"}, sent)).choices[0].finish_reason == published


@pytest.mark.parametrize(
    "reason", ["error", "insufficient_system_resource", "function_call_filter: MALFORMED_FUNCTION_CALL"]
)
@pytest.mark.parametrize("name", ["finish_reason", "native_finish_reason"])
def test_reason_that_is_a_failure_fails_the_job(name: str, reason: str) -> None:
    value = chunk({"content": "a"})
    value["choices"][0][name] = reason

    pieces, verdict = read(events(value, "[DONE]"))

    assert verdict.error is not None
    assert verdict.error.retryable
    assert fold(piece.chunk for piece in pieces).choices[0].finish_reason is None


def test_reasoning_of_details_alone_is_text() -> None:
    details = [
        {"type": "reasoning.text", "text": "Hm", "index": 0},
        {"type": "reasoning.encrypted", "data": "x", "index": 1},
    ]

    completion = completed(chunk({"reasoning_details": details}), chunk({"content": "a"}, "stop"))

    assert completion.choices[0].message.reasoning_content == "Hm"


def test_empty_reasoning_is_none() -> None:
    completion = completed(chunk({"content": "a", "reasoning_content": ""}, "stop"))

    assert completion.choices[0].message.reasoning_content is None


def test_index_that_counts_up_is_read_as_the_one_choice() -> None:
    completion = completed(
        chunk({"content": "a"}, index=0), chunk({"content": "b"}, index=1), chunk({}, "stop", index=2)
    )

    assert [choice.message.content for choice in completion.choices] == ["ab"]


def test_message_in_a_stream_is_taken_once() -> None:
    summary = {**HEAD, "choices": [{"index": 0, "message": {"content": "ab"}, "finish_reason": "stop"}]}

    assert completed(chunk({"content": "a"}), chunk({"content": "b"}), summary).text == "ab"


def test_whole_completion_is_one_chunk_for_each_choice() -> None:
    choices = [
        {"index": at, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for at, text in enumerate("ab")
    ]
    body = {
        **HEAD,
        "object": "chat.completion",
        "choices": choices,
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }

    pieces, verdict = read(json.dumps(body, indent=2).encode(), n=2)

    assert [[choice.index for choice in piece.chunk.choices] for piece in pieces] == [[0], [1]]
    assert fold(piece.chunk for piece in pieces).usage is not None
    assert verdict.completed
    assert verdict.finished


def test_whole_completion_without_finish_reason_is_complete() -> None:
    body = {**HEAD, "choices": [{"message": {"content": "a"}, "finish_reason": None}]}

    pieces, verdict = read(json.dumps(body).encode())

    assert (verdict.completed, verdict.finished, verdict.synthesised) == (True, False, True)
    assert fold(piece.chunk for piece in pieces).choices[0].finish_reason == "stop"


# ---- tool calls


def function(name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    return {name_: value for name_, value in (("name", name), ("arguments", arguments)) if value is not None}


def test_new_id_with_a_name_under_the_same_index_is_another_call() -> None:
    completion = completed(
        tool(index=0, id="a", function=function("f", "{}")),
        tool(index=0, id="b", function=function("g", "")),
        tool(index=0, function=function(arguments="[]")),
        chunk({}, "tool_calls"),
    )

    assert calls_of(completion) == [("a", "f", "{}"), ("b", "g", "[]")]


def test_new_id_without_a_name_is_the_same_call() -> None:
    completion = completed(
        tool(index=0, id="a", function=function("f", "")),
        tool(index=0, id="b", function=function(arguments="{}")),
        chunk({}, "tool_calls"),
    )

    assert calls_of(completion) == [("a", "f", "{}")]


def test_other_name_after_arguments_is_another_call() -> None:
    completion = completed(
        tool(index=0, function=function("f", "{}")),
        tool(index=0, function=function("g", "[]")),
        chunk({}, "tool_calls"),
    )

    assert [(name, arguments) for _, name, arguments in calls_of(completion)] == [("f", "{}"), ("g", "[]")]
    assert len({id_ for id_, _, _ in calls_of(completion)}) == 2


def test_calls_without_index_and_id_are_told_apart_by_their_names() -> None:
    completion = completed(
        chunk({"tool_calls": [{"function": function("f", {"a": 1})}, {"function": function("f", {"a": 2})}]}),
        tool(function=function("g", "{")),
        tool(function=function(arguments="}")),
        chunk({}, "tool_calls"),
    )

    assert [(name, arguments) for _, name, arguments in calls_of(completion)] == [
        ("f", '{"a":1}'),
        ("f", '{"a":2}'),
        ("g", "{}"),
    ]


def test_same_index_twice_in_one_chunk_is_one_entry() -> None:
    entries = [
        {"index": 0, "id": "a", "type": "function", "function": function("f", "{")},
        {"index": 0, "function": function(arguments="}")},
    ]

    pieces, _ = read(events(chunk({"tool_calls": entries}), chunk({}, "tool_calls")))

    delta = pieces[0].chunk.choices[0].delta
    assert len(delta.tool_calls or []) == 1
    assert calls_of(fold(piece.chunk for piece in pieces)) == [("a", "f", "{}")]


def test_ids_that_are_made_up_are_the_same_in_every_attempt() -> None:
    answer = (tool(index=0, function=function("f", "{}")), chunk({}, "tool_calls"))

    assert calls_of(completed(*answer)) == calls_of(completed(*answer))


def test_custom_tool_calls_pass() -> None:
    completion = completed(
        tool(index=0, id="a", type="custom", custom={"name": "sql", "input": "select"}),
        tool(index=0, custom={"input": " 1"}),
        chunk({}, "tool_calls"),
    )

    assert completion.choices[0].message.tool_calls is not None
    call = completion.choices[0].message.tool_calls[0].model_dump()
    assert (call["type"], call["custom"]) == ("custom", {"name": "sql", "input": "select 1"})


# ---- the end


@pytest.mark.parametrize("end", ["[DONE]", " [DONE] ", "[DONE] trailing", "data: [DONE]"])
def test_end_marker_is_recognised(end: str) -> None:
    _, verdict = read(events(chunk({"content": "a"}, "stop"), end))

    assert verdict.sentinel


def test_nothing_is_read_after_the_end_marker() -> None:
    adapter = OpenAI().adapter(Call(JOB_ID, "m", 1))

    pieces = adapter.feed(events(chunk({"content": "a"}, "stop"), "[DONE]", chunk({"content": "b"}), {"error": "late"}))

    assert adapter.ended
    assert len(pieces) == 1
    assert adapter.feed(events(chunk({"content": "b"}))) == []
    assert adapter.close()[1].completed


def test_synthesised_reason_says_so() -> None:
    pieces, verdict = read(events(chunk({"content": "a"}), "[DONE]"))

    assert (verdict.synthesised, verdict.finished) == (True, False)
    assert json.loads(pieces[-1].data)["choices"] == [
        {"index": 0, "delta": {}, "finish_reason": "stop", "finish_reason_synthesised": True}
    ]


HALF_A_CALL = {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}}]}


@pytest.mark.parametrize(
    "delta",
    [{"role": "assistant", "content": ""}, {"reasoning_content": "Hm"}, HALF_A_CALL],
    ids=["nothing said", "only thought", "half a tool call"],
)
def test_end_marker_after_half_an_answer_is_retryable(delta: dict[str, Any]) -> None:
    _, verdict = read(events(chunk(delta), "[DONE]"))

    assert verdict.error is not None
    assert (verdict.error.retryable, verdict.error.code, verdict.sentinel) == (True, "truncated", True)


def test_answer_with_fewer_choices_than_asked_for_is_complete_only_with_the_end_marker() -> None:
    answer = events(chunk({"content": "a"}, "stop"))

    assert not read(answer, n=2)[1].completed
    assert read(answer + events("[DONE]"), n=2)[1].completed


def test_half_an_event_at_the_end_changes_nothing() -> None:
    answer = events(chunk({"content": "a"}, "stop"))

    assert read(answer + b'data: {"id": "c1", "cho')[1].completed
    verdict = read(events(chunk({"content": "a"})) + b'data: {"id": "c1", "cho')[1]
    assert verdict.error is not None
    assert verdict.error.code == "truncated"


@pytest.mark.parametrize("noise", [": ping", "ping", "[HEARTBEAT]", "null", "", "[]", '{"type":"ping"}', "keep-alive"])
def test_keep_alives_sent_as_data_are_nothing(noise: str) -> None:
    assert completed(noise, chunk({"content": "a"}), noise, chunk({}, "stop"), noise).text == "a"


def test_events_named_for_keeping_alive_are_nothing() -> None:
    ping = b"event: ping\ndata: 2026-01-01T00:00:00Z\n\n"

    _, verdict = read(ping + events(chunk({"content": "a"}, "stop")) + ping)

    assert verdict.completed


@pytest.mark.parametrize(
    "nonsense",
    [
        '{"id": "c1", "choices"',
        "lorem ipsum",
        "12",
        '"text"',
        "[1, 2",
        '{"choices": [{"index": 0, "delta": {"content": "x"}',
    ],
)
def test_nonsense_in_the_stream_breaks_the_answer(nonsense: str) -> None:
    pieces, verdict = read(events(chunk({"content": "a"}), nonsense, chunk({"content": "b"}, "stop"), "[DONE]"))

    assert verdict.error is not None
    assert (verdict.error.type, verdict.error.code, verdict.error.retryable) == (
        "upstream_error",
        "malformed_response",
        True,
    )
    assert fold(piece.chunk for piece in pieces).text == "a"


@pytest.mark.parametrize(
    "body",
    [b"<html><h1>Welcome</h1></html>", b"OK", b'{"hello": "world"}', b"[]", b'{"choices": [{"mess', b"\x00\xff" * 50],
)
def test_body_that_is_no_answer_is_retryable_nonsense(body: bytes) -> None:
    pieces, verdict = read(body)

    assert pieces == []
    assert verdict.error is not None
    assert verdict.error.type == "upstream_error"
    assert verdict.error.retryable


@pytest.mark.parametrize("error", [
    b'{"error": {"message": "Overloaded", "type": "overloaded_error"}}',
    b'{"error":\n {"message": "Overloaded"}\n}',
    b"event: error\ndata: Overloaded\n\n",
    b'data: {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}\n\n',
    b'data: {"error": "Overloaded"}\n\n',
    b'data: {"detail": "Overloaded"}\n\n',
    b'[{"error": {"code": 503, "message": "Overloaded", "status": "UNAVAILABLE"}}]',
])  # fmt: skip
@pytest.mark.parametrize("before", [b"", events(chunk({"content": "a"}))], ids=["first", "midway"])
def test_errors_are_seen_in_whatever_shape_they_come(before: bytes, error: bytes) -> None:
    _, verdict = read(before + error)

    assert verdict.error is not None
    assert verdict.error.message == "Overloaded"
    assert verdict.error.retryable


def test_stream_that_starts_over_is_retryable_and_not_joined() -> None:
    first = [chunk({"role": "assistant", "content": "Hel"}), chunk({"content": "lo"})]
    again = [{**chunk({"role": "assistant", "content": "Hello"}), "id": "c2"}, {**chunk({}, "stop"), "id": "c2"}]

    pieces, verdict = read(events(*first, *again, "[DONE]"))

    assert verdict.error is not None
    assert (verdict.error.code, verdict.error.retryable) == ("stream_restarted", True)
    assert fold(piece.chunk for piece in pieces).text == "Hello"


def test_ids_that_always_change_are_no_restart() -> None:
    values = [{**chunk({"role": "assistant", "content": text}), "id": text} for text in "abc"]

    assert completed(*values, chunk({}, "stop")).text == "abc"


def test_choices_with_ids_of_their_own_are_no_restart() -> None:
    values = [
        {**chunk({"role": "assistant", "content": "a"}, index=at), "id": f"c{at}"} for at in (0, 1)
    ] + [{**chunk({}, "stop", index=at), "id": f"c{at}"} for at in (0, 1)]  # fmt: skip

    assert [choice.message.content for choice in completed(*values, n=2).choices] == ["a", "a"]


def test_event_beyond_the_bound_is_fatal() -> None:
    _, verdict = read(events(chunk({"content": "x" * 2000})), max_event_bytes=1024)

    assert verdict.error is not None
    assert (verdict.error.type, verdict.error.retryable) == ("output_too_large", False)


def test_json_body_beyond_the_bound_is_fatal() -> None:
    _, verdict = read(b'{"choices": "' + b"x" * 2000, max_event_bytes=1024)

    assert verdict.error is not None
    assert verdict.error.type == "output_too_large"
