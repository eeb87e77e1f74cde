"""The fold against openai-python's own accumulation, and what must hold of it for any stream."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming._deltas import accumulate_delta
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk as OpenAIChunk

from tokentape.chunk import ChatCompletionChunk
from tokentape.completion import Fold, fold

HEAD: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1730000000,
    "model": "m-1",
    "system_fingerprint": "fp_1",
    "service_tier": "default",
}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
names = st.text("abcdefg_", min_size=1, max_size=6)
usages = st.fixed_dictionaries(
    {"prompt_tokens": st.integers(0, 99), "completion_tokens": st.integers(0, 99), "total_tokens": st.integers(0, 198)},
    optional={
        "prompt_tokens_details": st.fixed_dictionaries({"cached_tokens": st.integers(0, 9)}),
        "completion_tokens_details": st.fixed_dictionaries({"reasoning_tokens": st.integers(0, 9)}),
        "num_sources_used": st.integers(0, 9),
    },
)
# Fields that no API knows: texts, numbers, lists of scalars, objects, and lists with an index.
extras = st.fixed_dictionaries(
    {},
    optional={
        "signature": texts,
        "score": st.integers(0, 9) | st.floats(0, 1),
        "tags": st.lists(names, max_size=2),
        "meta": st.dictionaries(names.map("k_{}".format), texts, max_size=2),
        "details": st.lists(st.fixed_dictionaries({"index": st.just(0), "text": texts}), max_size=2),
    },
)
# Any JSON under few names, so that values of one name rarely fit each other.
json_names = st.sampled_from(["id", "type", "name", "index", "format", "a", "b"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(json_names, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(json_names.map("x_{}".format) | st.just("name"), json_values, max_size=3)


@st.composite
def logprobs(draw: st.DrawFn, field: str) -> dict[str, Any]:
    tokens = [
        {"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": []}
        for token in draw(st.lists(texts, min_size=1, max_size=2))
    ]
    return {"content": None, "refusal": None, field: tokens}


@st.composite
def text_steps(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Reasoning, then content or a refusal, with or without log probabilities, with or without unknown fields."""
    field = draw(st.sampled_from(["content", "refusal"]))
    steps = [{"delta": {"reasoning_content": piece}} for piece in draw(st.lists(texts, max_size=3))]
    with_logprobs = draw(st.booleans())
    for piece in draw(st.lists(texts, max_size=5)):
        step: dict[str, Any] = {"delta": {field: piece, **draw(st.just({}) | extras)}}
        if with_logprobs:
            step["logprobs"] = draw(logprobs(field))
        steps.append(step)
    return steps


@st.composite
def tool_steps(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Parallel calls: each begins in order of index with id, type and name; arguments then come in any order."""
    count = draw(st.integers(1, 3))
    begun = 0
    steps = []
    for index in draw(st.lists(st.integers(0, count - 1), max_size=8)):
        if index >= begun:
            function = {"name": draw(names), "arguments": ""}
            entry = {"index": begun, "id": f"call_{begun}", "type": "function", "function": function}
            begun += 1
        else:
            entry = {"index": index, "function": {"arguments": draw(texts)}}
        steps.append({"delta": {"tool_calls": [entry]}})
    return steps


@st.composite
def choice_steps(draw: st.DrawFn, index: int) -> list[dict[str, Any]]:
    """One choice from its role to its finish reason, well-formed."""
    first: dict[str, Any] = {"delta": {"role": "assistant", **draw(st.sampled_from([{}, {"content": ""}]))}}
    reason = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
    steps = [first, *draw(text_steps() | tool_steps()), {"delta": {}, "finish_reason": reason}]
    return [{"index": index, "logprobs": None, "finish_reason": None, **step} for step in steps]


@st.composite
def woven(draw: st.DrawFn, sequences: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The sequences as one, each in its own order."""
    order = draw(st.permutations([number for number, steps in enumerate(sequences) for _ in steps]))
    rest = [iter(steps) for steps in sequences]
    return [next(rest[number]) for number in order]


@st.composite
def choices_of_a_stream(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    return [draw(choice_steps(index)) for index in range(draw(st.integers(1, 3)))]


@st.composite
def streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A well-formed stream: the roles in order of index, then everything woven together, then perhaps the usage."""
    sequences = draw(choices_of_a_stream())
    with_usage = draw(st.booleans())
    roles = [steps.pop(0) for steps in sequences]
    chunks = [{**HEAD, "choices": [choice]} for choice in [*roles, *draw(woven(sequences))]]
    if with_usage:
        chunks = [{**chunk, "usage": None} for chunk in chunks]
        chunks.append({**HEAD, "choices": [], "usage": draw(usages)})
    return chunks


def ours(stream: list[dict[str, Any]]) -> list[ChatCompletionChunk]:
    return [ChatCompletionChunk.model_validate_json(json.dumps(chunk)) for chunk in stream]


def theirs(stream: list[dict[str, Any]]) -> dict[str, Any]:
    """What openai-python assembles, without its parsed_* and without the stream's index in tool calls."""
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in stream:
        state.handle_chunk(OpenAIChunk.model_validate(chunk))
    completion: dict[str, Any] = state.current_completion_snapshot.to_dict(mode="json")
    for choice in completion["choices"]:
        choice["message"].pop("parsed", None)
        for call in choice["message"].get("tool_calls") or []:
            call.pop("index")
            call["function"].pop("parsed_arguments", None)
    return completion


def without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


@given(streams())
def test_the_fold_equals_what_openai_python_assembles(stream: list[dict[str, Any]]) -> None:
    completion = fold(ours(stream))

    assert without_nulls(json.loads(completion.to_json())) == without_nulls(theirs(stream))


@given(streams())
def test_content_is_null_exactly_where_openai_python_has_none(stream: list[dict[str, Any]]) -> None:
    completion = fold(ours(stream))

    expected = [choice["message"].get("content") for choice in theirs(stream)["choices"]]
    assert [choice.message.content for choice in completion.choices] == expected


@given(st.lists(extras, max_size=6))
def test_unknown_fields_of_deltas_grow_as_in_openai_python(deltas: list[dict[str, Any]]) -> None:
    expected: dict[object, object] = {}
    for delta in json.loads(json.dumps(deltas)):
        accumulate_delta(expected, delta)

    completion = fold(ours([{"choices": [{"index": 0, "delta": delta}]} for delta in [{}, *deltas]]))

    assert completion.choices[0].message.model_extra == expected


@given(st.data())
def test_the_order_in_which_choices_arrive_does_not_matter(data: st.DataObject) -> None:
    sequences = data.draw(choices_of_a_stream())
    one_after_the_other = [choice for steps in sequences for choice in steps]
    mixed = data.draw(woven(sequences))

    completion = fold(ours([{**HEAD, "choices": [choice]} for choice in mixed]))

    assert completion == fold(ours([{**HEAD, "choices": [choice]} for choice in one_after_the_other]))
    assert completion == fold(ours([{**HEAD, "choices": mixed}]))


@given(streams(), st.data())
def test_a_fold_that_was_looked_at_midway_goes_on_to_the_whole(
    stream: list[dict[str, Any]], data: st.DataObject
) -> None:
    chunks = ours(stream)
    cut = data.draw(st.integers(0, len(chunks)))
    state = Fold()

    for chunk in chunks[:cut]:
        state.add(chunk)
    midway = state.completion()
    for chunk in chunks[cut:]:
        state.add(chunk)

    assert midway == fold(chunks[:cut])
    assert state.completion() == fold(chunks)
    assert state.text() == state.completion().text


@given(streams())
def test_chunks_are_not_changed_by_the_fold(stream: list[dict[str, Any]]) -> None:
    chunks = ours(stream)

    first = fold(chunks).to_json()
    second = fold(chunks).to_json()

    assert [json.loads(chunk.to_json()) for chunk in chunks] == stream
    assert first == second


@given(st.lists(st.tuples(json_objects, json_objects, json_objects), max_size=5))
def test_no_unknown_field_of_whatever_shape_stops_the_fold(fields: list[tuple[dict[str, Any], ...]]) -> None:
    stream = [
        {**top, "choices": [{**beside, "index": 0, "delta": {**delta, "content": "a"}}]}
        for top, beside, delta in fields
    ]

    completion = fold(ours(stream))

    sent = [{name for chunk in layer for name in chunk} for layer in zip(*fields, strict=True)] or [set()] * 3
    assert completion.text == "a" * len(stream)
    assert set(completion.model_extra or {}) == sent[0]
    assert [set(choice.model_extra or {}) for choice in completion.choices] == [sent[1]][: len(stream)]
    assert [set(choice.message.model_extra or {}) for choice in completion.choices] == [sent[2]][: len(stream)]


def test_numbers_that_cannot_be_added_keep_the_first() -> None:
    big = 10**400

    completion = fold(ours([{"choices": [{"index": 0, "delta": {"x_n": number}}]} for number in (big, 0.5)]))

    assert completion.choices[0].message.model_extra == {"x_n": big}
