"""What both translations promise: nothing is left out silently, nothing but InvalidRequest is raised, native bodies are
sent as they are. And the files that a request may hold."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import completion_create_params as openai_params

from tokentape import InvalidRequest
from tokentape.translation import Translation, translate
from tokentape.translation.drops import Drops
from tokentape.translation.media import data_url
from tokentape.translation.request import wishes

Vendor = Literal["anthropic", "gemini"]
VENDORS: tuple[Vendor, ...] = ("anthropic", "gemini")
MODELS = {
    "anthropic": ["claude-sonnet-4-5", "claude-opus-4-6", "claude-opus-5"],
    "gemini": ["gemini-2.5-flash", "gemini-3.1-pro", "gemini-3.5-flash"],
}
DATA = base64.b64encode(b"%PDF-1.4").decode()
EXAMPLE = Path(__file__).parents[2] / "examples" / "pdf.json"


# ---- nothing is left out silently

text = st.sampled_from(["a", "b c", "Ü", "x\ny"])
number = st.sampled_from([-0.5, 0, 0.25, 1, 1.75])
maybe_cached = {
    "prompt_cache_breakpoint": st.just({"mode": "explicit"}),
    "cache_control": st.just({"type": "ephemeral"}),
}
user_part = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": text}, optional=maybe_cached),
    st.fixed_dictionaries({
        "type": st.just("image_url"),
        "image_url": st.fixed_dictionaries(
            {"url": st.sampled_from(["https://a/b.png", f"data:image/png;base64,{DATA}", "data:image/bmp;base64,AA"])},
            optional={"detail": st.sampled_from(["auto", "low", "high"])},
        ),
    }),
    st.fixed_dictionaries({
        "type": st.just("file"),
        "file": st.fixed_dictionaries(
            {}, optional={"file_data": st.just(f"data:application/pdf;base64,{DATA}"), "file_id": st.just("file-1"),
                          "file_url": st.just("https://a/b.pdf"), "filename": st.just("b.pdf")},
        ).filter(lambda file: len(file.keys() - {"filename"}) > 0),
    }),
    st.fixed_dictionaries({
        "type": st.just("input_audio"),
        "input_audio": st.fixed_dictionaries({"data": st.just(DATA), "format": st.sampled_from(["wav", "mp3"])}),
    }),
)  # fmt: skip
calls = st.lists(
    st.one_of(
        st.fixed_dictionaries({
            "id": st.sampled_from(["id_1", "id_2"]),
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": text, "arguments": st.sampled_from(["", "{}", '{"a": [1]}'])}),
        }),
        st.just({"id": "id_3", "type": "custom", "custom": {"name": "c", "input": "i"}}),
    ),
    min_size=1,
    max_size=2,
)  # fmt: skip
message = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer"]), "content": text}, optional={"name": text}
    ),
    st.fixed_dictionaries(
        {"role": st.just("user"), "content": st.one_of(text, st.lists(user_part, min_size=1, max_size=3))},
        optional={"name": text},
    ),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": st.one_of(text, st.none())},
        optional={"refusal": text, "name": text, "tool_calls": calls, "audio": st.just({"id": "a"}),
                  "function_call": st.just({"name": "f", "arguments": "{}"})},
    ),
    st.fixed_dictionaries({
        "role": st.just("tool"), "tool_call_id": st.sampled_from(["id_1", "id_2", "id_3"]), "content": text
    }),
    st.just({"role": "function", "name": "f", "content": "x"}),
)  # fmt: skip
schema = st.sampled_from([{"type": "object"}, {"type": "object", "properties": {"a": {"enum": ["x"]}}}])
function = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "g"])},
    optional={"description": text, "parameters": schema, "strict": st.booleans()},
)
named = st.sampled_from([{"type": "function", "function": {"name": name}} for name in ("f", "g", "h")])
#: A value for each parameter of openai's, as a client may well give it. A new one there makes a test here fail.
PARAMETERS: dict[str, st.SearchStrategy[Any]] = {
    "messages": st.lists(message, min_size=1, max_size=5),
    "audio": st.just({"voice": "alloy", "format": "wav"}),
    "frequency_penalty": number,
    "function_call": st.sampled_from(["auto", {"name": "f"}]),
    "functions": st.lists(st.fixed_dictionaries({"name": text, "parameters": schema}), max_size=1),
    "logit_bias": st.sampled_from([{}, {"7": -100}]),
    "logprobs": st.booleans(),
    "max_completion_tokens": st.sampled_from([900, 5000]),
    "max_tokens": st.sampled_from([901, 5001]),  # said twice, it would make no difference once
    "metadata": st.dictionaries(st.sampled_from(["user_id", "team"]), st.sampled_from(["m", "M"])),
    "modalities": st.sampled_from([["text"], ["text", "audio"]]),
    "moderation": st.just({"model": "omni-moderation-latest"}),
    "n": st.integers(1, 3),
    "parallel_tool_calls": st.booleans(),
    "prediction": st.just({"type": "content", "content": "x"}),
    "presence_penalty": number,
    "prompt_cache_key": text,
    "prompt_cache_options": st.sampled_from([{"mode": "implicit"}, {"mode": "explicit", "ttl": "30m"}]),
    "prompt_cache_retention": st.sampled_from(["in_memory", "24h"]),
    "reasoning_effort": st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh", "max"]),
    "response_format": st.one_of(
        st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
        st.fixed_dictionaries({
            "type": st.just("json_schema"),
            "json_schema": st.fixed_dictionaries(
                {"name": text, "schema": schema}, optional={"strict": st.booleans(), "description": text}
            ),
        }),
    ),
    "safety_identifier": st.just("s"),
    "seed": st.integers(0, 9),
    "service_tier": st.sampled_from(["auto", "default", "flex", "scale", "priority", "fast"]),
    "stop": st.one_of(text, st.lists(st.sampled_from(["END", " ", "\n"]), max_size=3, unique=True)),
    "store": st.booleans(),
    "stream_options": st.just({"include_usage": True}),
    "temperature": number,
    "tool_choice": st.one_of(
        st.sampled_from(["auto", "none", "required", {"type": "custom", "custom": {"name": "c"}}]),
        named,
        st.fixed_dictionaries({
            "type": st.just("allowed_tools"),
            "allowed_tools": st.fixed_dictionaries({
                "mode": st.sampled_from(["auto", "required"]), "tools": st.lists(named, min_size=1, max_size=2)
            }),
        }),
    ),
    "tools": st.lists(
        st.one_of(
            st.fixed_dictionaries({"type": st.just("function"), "function": function}),
            st.just({"type": "custom", "custom": {"name": "c", "format": {"type": "text"}}}),
        ),
        max_size=3,
    ),
    "top_logprobs": st.integers(0, 3),
    "top_p": number,
    "user": st.just("u"),
    "verbosity": st.sampled_from(["low", "medium", "high"]),
    "web_search_options": st.fixed_dictionaries({}, optional={
        "search_context_size": st.sampled_from(["low", "medium", "high"]),
        "user_location": st.just({"type": "approximate", "approximate": {"city": "Ulm", "country": "DE"}}),
    }),
}  # fmt: skip

#: Values that need nothing, because every API does it anyway or there is nothing to be done: fields by pattern.
NEEDS_NOTHING = [
    (r"model", ".*"),  # for Anthropic and Gemini visible in the body and the path; here it decides about thinking too
    (r"stream_options\..*", ".*"),  # how the tape is written is the worker's business
    (r"n", ".*"),  # Anthropic is called so many times
    (r"logprobs|top_logprobs|store", "False|0"),
    (r"(presence|frequency)_penalty", "0"),
    (r"verbosity", "'medium'"),
    (r"service_tier", "'auto'"),
    (r"modalities\.0", "'text'"),
    (r"prompt_cache_options\.mode", "'implicit'"),
    (r"function_call|tool_choice", "'auto'|'none'"),
    (r"response_format\.type", "'text'"),
    (r"response_format\.json_schema\.(name|strict)", ".*"),  # no other API names its schema, or keeps to one by halves
    (r"tools\.\d+\.(type|function\.parameters\.type)", "'function'|'object'"),
    (r"tool_choice\.allowed_tools\.mode", "'auto'"),
    (r"tool_choice\.allowed_tools\.tools\.\d+\.type", "'function'"),
    (r"tool_choice\.(type|allowed_tools\.tools\.\d+\.function\.name)", ".*"),
    (r"web_search_options\.search_context_size", "'medium'"),
    (r"web_search_options\.user_location\.type", "'approximate'"),
    (r"messages\.\d+\.content\.\d+\.image_url\.detail", "'auto'"),
    (r"messages\.\d+\.content\.\d+\.file\.filename", ".*"),  # where the API has no place for a file's name
    (r"messages\.\d+\.tool_calls\.\d+\.type", "'function'"),
    (r"messages\.\d+\.tool_calls\.\d+\.function\.arguments", "''|'{}'"),
]


def needs_nothing(path: str, value: Any, body: dict[str, Any]) -> bool:
    """Whether a value is one of NEEDS_NOTHING, or asks for something about tools in a body where there is nothing."""
    if path == "parallel_tool_calls":
        return value is True or body.get("tool_choice") == "none" or not offers(body)
    if re.fullmatch(r"tools\.\d+\.function\.strict", path):  # the other strict functions, or the mode, say it as well
        return value is False or str(body).count("'strict': True") > 1 or body.get("tool_choice") is not None
    return value in (None, {}, []) or any(
        re.fullmatch(pattern, path) and re.fullmatch(values, repr(value), re.DOTALL)
        for pattern, values in NEEDS_NOTHING
    )


def offers(body: dict[str, Any]) -> bool:
    """Whether a body offers anything to be called."""
    return "web_search_options" in body or any(tool["type"] == "function" for tool in body.get("tools", ()))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Everything in a body that is no container, or an empty one, with its path."""
    if isinstance(value, dict | list) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def without(body: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """The body less one leaf."""
    changed = copy.deepcopy(body)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return changed


def is_named(path: str, dropped: tuple[str, ...]) -> bool:
    """Whether a dropped field is the leaf, or holds it: a turn, part, tool or file goes with what it failed by."""
    ends = r"\.(type|role|tool_call_id|url|file_data|file_id|(?<=function\.)name)$"
    holders = {*dropped, *(re.sub(ends, "", name) for name in dropped)}
    return any(path == name or path.startswith(f"{name}.") for name in holders)


def outcome(vendor: Vendor, body: dict[str, Any]) -> Translation | str | None:
    try:
        return translate(vendor, body, drop_unsupported=True)
    except InvalidRequest as refused:
        return refused.field


@st.composite
def bodies(draw: st.DrawFn, vendor: Vendor) -> dict[str, Any]:
    """A body with a handful of parameters."""
    names = draw(st.lists(st.sampled_from(sorted(PARAMETERS.keys() - {"messages"})), max_size=8, unique=True))
    return {
        "model": draw(st.sampled_from(MODELS[vendor])),
        "messages": [{"role": "user", "content": "Hello"}, *draw(PARAMETERS["messages"])],
        **{name: draw(PARAMETERS[name]) for name in names},
    }


class TestNothingIsLeftOutSilently:
    def test_every_parameter_of_openais_is_drawn(self) -> None:
        known = openai_params.CompletionCreateParamsBase.__annotations__.keys() - {"model"}

        assert known == PARAMETERS.keys()

    @pytest.mark.parametrize("vendor", VENDORS)
    @given(data=st.data())
    def test_each_value_is_seen_in_what_is_sent_or_named_or_needs_nothing(
        self, vendor: Vendor, data: st.DataObject
    ) -> None:
        body = data.draw(bodies(vendor))
        whole = outcome(vendor, body)
        if not isinstance(whole, Translation):
            return

        for path, value in leaves(body):
            name = ".".join(map(str, path))
            if is_named(name, whole.dropped) or needs_nothing(name, value, body):
                continue
            assert outcome(vendor, without(body, path)) != whole, f"{name} makes no difference"

    @pytest.mark.parametrize("vendor", VENDORS)
    @given(data=st.data())
    def test_what_would_be_dropped_is_refused_first(self, vendor: Vendor, data: st.DataObject) -> None:
        body = data.draw(bodies(vendor))
        whole = outcome(vendor, body)

        if isinstance(whole, Translation) and not whole.dropped:
            assert translate(vendor, body) == whole
        else:
            with pytest.raises(InvalidRequest) as refused:
                translate(vendor, body)
            assert refused.value.field in (whole.dropped if isinstance(whole, Translation) else {refused.value.field})

    @pytest.mark.parametrize("vendor", VENDORS)
    @pytest.mark.parametrize("name", sorted(PARAMETERS.keys() - {"messages"}))
    def test_null_asks_for_nothing(self, vendor: Vendor, name: str) -> None:
        body = {"model": MODELS[vendor][0], "messages": [{"role": "user", "content": "Hello"}]}

        assert translate(vendor, {**body, name: None}) == translate(vendor, body)

    @pytest.mark.parametrize("vendor", VENDORS)
    @pytest.mark.parametrize(
        "fields",
        [{"n": 1}, {"store": False}, {"logprobs": False}, {"top_logprobs": 0}, {"presence_penalty": 0},
         {"frequency_penalty": 0.0}, {"logit_bias": {}}, {"modalities": ["text"]}, {"parallel_tool_calls": True},
         {"service_tier": "auto"}, {"verbosity": "medium"}, {"metadata": {}}, {"stop": []}, {"tools": []},
         {"functions": []}, {"function_call": "none"}, {"tool_choice": "auto"}, {"response_format": {"type": "text"}},
         {"prompt_cache_options": {"mode": "implicit"}}, {"stream_options": {"include_usage": True}}, {"stream": True}],
    )  # fmt: skip
    def test_default_that_is_written_out_asks_for_nothing(self, vendor: Vendor, fields: dict[str, Any]) -> None:
        body = {"model": MODELS[vendor][0], "messages": [{"role": "user", "content": "Hello"}]}

        assert translate(vendor, {**body, **fields}) == translate(vendor, body)


# ---- whatever it is given

json_value = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


class TestWhateverItIsGiven:
    @pytest.mark.parametrize("vendor", VENDORS)
    @given(data=st.data())
    @settings(max_examples=300)
    def test_a_value_of_any_kind_is_translated_or_refused_and_never_changed(
        self, vendor: Vendor, data: st.DataObject
    ) -> None:
        body = copy.deepcopy(data.draw(bodies(vendor)))
        *above, last = data.draw(st.sampled_from([path for path, _ in leaves(body)]))
        inner: Any = body
        for key in above:
            inner = inner[key]
        inner[last] = data.draw(json_value)
        before = copy.deepcopy(body)

        whole = outcome(vendor, body)

        assert body == before
        assert whole is not None
        if isinstance(whole, Translation):
            json.dumps(whole.body, allow_nan=False)

    @pytest.mark.parametrize("vendor", VENDORS)
    @given(name=st.sampled_from(sorted(PARAMETERS)), value=json_value)
    @settings(max_examples=300)
    def test_a_parameter_of_any_kind_is_translated_or_refused(self, vendor: Vendor, name: str, value: Any) -> None:
        body = {"model": MODELS[vendor][0], "messages": [{"role": "user", "content": "Hello"}], name: value}

        assert outcome(vendor, body) is not None


# ---- drops, native bodies


class TestDrops:
    def test_unsupported_field_is_refused_and_the_way_out_is_said(self) -> None:
        with pytest.raises(InvalidRequest, match=r"^seed: why \(drop_unsupported"):
            Drops().unsupported("seed", "why")

    def test_dropped_fields_are_named_once_in_their_order(self) -> None:
        drops = Drops(dropping=True)

        drops.unsupported("seed", "why")
        drops.unsupported("audio", "why")
        drops.unsupported("seed", "why")

        assert drops.fields == ("seed", "audio")

    def test_what_an_object_holds_beyond_is_named_with_its_path_unless_it_is_null(self) -> None:
        drops = Drops(dropping=True)

        drops.beyond({"a"}, {"a": 1, "b": False, "c": None}, "tools.0")

        assert drops.fields == ("tools.0.b",)

    def test_wishes_are_what_asks_for_something(self) -> None:
        assert wishes({"seed": 0, "n": 1, "stop": None, "x": False}) == {"seed": 0, "x": False}


class TestNative:
    @pytest.mark.parametrize(("stream", "streamed"), [({}, True), ({"stream": True}, True), ({"stream": False}, False)])
    def test_anthropic_body_is_sent_as_it_is_as_a_stream_unless_it_says_otherwise(
        self, stream: dict[str, Any], streamed: bool
    ) -> None:
        body = {"model": "m", "max_tokens": 1, "messages": [], "seed": 1, "n": None, **stream}

        assert translate("anthropic", body, native=True) == ("/messages", {**body, "stream": streamed}, streamed, ())

    @pytest.mark.parametrize(
        ("stream", "verb"), [({}, "streamGenerateContent"), ({"stream": False}, "generateContent")]
    )
    def test_gemini_body_is_sent_without_the_model_that_makes_its_path(self, stream: dict[str, Any], verb: str) -> None:
        body = {"contents": [], "seed": 1, "x": None}

        assert translate("gemini", {**body, "model": "m", **stream}, native=True) == (
            f"/models/m:{verb}", body, not stream, ()
        )  # fmt: skip

    def test_gemini_body_needs_a_model(self) -> None:
        with pytest.raises(InvalidRequest) as refused:
            translate("gemini", {"contents": []}, native=True)

        assert refused.value.field == "model"

    @pytest.mark.parametrize("native", [True, False])
    def test_openai_body_is_sent_as_it_is(self, native: bool) -> None:
        body: dict[str, Any] = {"model": "m", "messages": [], "anything": None}

        assert translate("openai", body, native=native) == ("/chat/completions", {**body, "stream": True}, True, ())
        assert translate("openai", {**body, "stream": False}).streamed is False


# ---- files


class TestDataUrls:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("data:application/pdf;base64,JVBERi0=", ("application/pdf", "JVBERi0=")),
            ("DATA:Image/PNG;BASE64,AAAA", ("image/png", "AAAA")),
            ("data:image/svg+xml;charset=utf-8;base64,AAAA", ("image/svg+xml", "AAAA")),
            ("data:application/pdf;name=a b.pdf;base64,AAAA", ("application/pdf", "AAAA")),
            ("data:image/png;base64,AA\r\nAA\n", ("image/png", "AAAA")),
            ("data:image/png;base64,AA", ("image/png", "AA==")),
            ("data:image/png;base64,AA%3D%3D", ("image/png", "AA==")),
            ("data:image/png;base64,AA%2BA", ("image/png", "AA+A")),
            ("https://example.com/data:image/png;base64,AAAA", None),
            ("", None),
        ],
    )
    def test_media_type_and_data_are_read(self, url: str, expected: Any) -> None:
        assert data_url(url, "x") == expected

    @pytest.mark.parametrize(
        "url",
        ["data:", "data:,", "data:text/plain,hello", "data:;base64,AAAA", "data:image;base64,AAAA",
         "data:image/png;base64,", "data:image/png;base64, \n", "data:image/png;base64,A", "data:image/png;base64,A-_A",
         "data:image/png;base64,Ü===", "data:image/png;base64,AA=A", "data:image/png;base64;AAAA"],
    )  # fmt: skip
    def test_broken_one_is_refused_by_its_field(self, url: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            data_url(url, "messages.0.content.0.image_url.url")

        assert refused.value.field == "messages.0.content.0.image_url.url"

    def test_long_parameters_are_read_in_one_go(self) -> None:
        with pytest.raises(InvalidRequest):
            data_url("data:image/png" + ";a=b" * 200_000, "x")


class TestExample:
    def test_it_is_a_question_about_a_small_file(self) -> None:
        example = json.loads(EXAMPLE.read_text())

        assert EXAMPLE.stat().st_size < 2048
        file, question = example["messages"][0]["content"]
        assert file["file"]["filename"].endswith(".pdf")
        assert question["text"].endswith("?")

    def test_its_file_is_a_pdf_whose_table_finds_each_object(self) -> None:
        part = json.loads(EXAMPLE.read_text())["messages"][0]["content"][0]
        data = data_url(part["file"]["file_data"], "x")
        assert data is not None
        pdf = base64.b64decode(data.data)

        assert data.media_type == "application/pdf"
        assert len(pdf) < 1024
        assert pdf.startswith(b"%PDF-1.4\n")
        assert pdf.endswith(b"%%EOF\n")
        start = re.search(rb"trailer\n<</Size (\d+)/Root 1 0 R>>\nstartxref\n(\d+)\n", pdf)
        assert start is not None
        table = pdf[int(start[2]) :].splitlines()
        assert table[:2] == [b"xref", b"0 %s" % start[1]]
        for number_, entry in enumerate(table[3 : 2 + int(start[1])], 1):
            assert pdf[int(entry[:10]) :].startswith(b"%d 0 obj\n" % number_)
        stream = re.search(rb"<</Length (\d+)>>\nstream\n(.*?)\nendstream", pdf, re.DOTALL)
        assert stream is not None
        assert len(stream[2]) == int(stream[1])
