"""Whatever an upstream sends, reading it raises nothing, and what comes of it does not depend on how it was cut."""

from __future__ import annotations

import base64
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokentape.chunk import ChatCompletionChunk
from tokentape_worker.classify import MAX_MESSAGE_CHARS, from_payload, from_response, redact
from tokentape_worker.dialects import Call, Piece, Verdict
from tokentape_worker.route import DIALECTS

JOB_ID = "job_0123456789abcdef0123456789abcdef"
_CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "dialects" / "cases.jsonl").read_bytes().split(b"\n")
    if line
]
BODIES = [body for case in _CASES if len(body := base64.b64decode(case["bytes_b64"])) < 5000]

ATOMS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from([10**30, "", "stop"])
)
NAMES = st.sampled_from(
    sorted({name.decode() for body in BODIES for name in re.findall(rb'"(\w+)":', body)} | {"details"})
)
OBJECTS = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=25
)


def chunk_of(delta: Any, choice: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**base, "choices": [{"index": 0, "finish_reason": None, **choice, "delta": delta}], **fields}


FIELDS = st.dictionaries(NAMES, OBJECTS, max_size=3)
CHUNKS = st.builds(chunk_of, FIELDS | OBJECTS, FIELDS, FIELDS)
# Of Anthropic and Gemini: what belongs somewhere, with anything in it, so that much of it gets past the first look.
TYPES = st.sampled_from(
    ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "error"]
)
BLOCKS = st.builds(
    lambda kind, fields: {"type": kind, **fields},
    st.sampled_from(
        ["text", "thinking", "tool_use", "text_delta", "thinking_delta", "signature_delta", "input_json_delta",
         "citations_delta", "web_search_tool_result"]
    ),
    FIELDS,
)  # fmt: skip
MESSAGES = st.builds(
    lambda kind, index, block, delta, fields: (
        {"type": kind, "index": index, "content_block": block, "delta": delta, **fields}
    ),
    TYPES, st.integers(-1, 3) | ATOMS, BLOCKS | OBJECTS, BLOCKS | FIELDS, FIELDS,
)  # fmt: skip
PARTS = st.builds(
    lambda name, inner, fields: {name: inner, **fields},
    st.sampled_from(["text", "functionCall", "thoughtSignature", "inlineData", "executableCode"]),
    st.text(max_size=5) | FIELDS,
    FIELDS,
)
RESPONSES = st.builds(
    lambda parts, candidate, fields: {"candidates": [{"content": {"parts": parts}, **candidate}], **fields},
    st.lists(PARTS, max_size=3) | OBJECTS,
    FIELDS,
    FIELDS,
)
EVENTS = st.one_of(
    (CHUNKS | MESSAGES | RESPONSES | OBJECTS).map(
        lambda value: f"data: {json.dumps(value)}\n\n".encode("utf-8", "surrogatepass")
    ),
    st.sampled_from([b"data: [DONE]\n\n", b": c\n\n", b"event: error\n", b"\r\n", b'{"error": 1}\n', b"<p>\n"]),
    st.binary(max_size=20),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    body = bytearray(draw(st.sampled_from(BODIES)))
    for _ in range(draw(st.integers(1, 5))):
        if not body:
            break
        at = draw(st.integers(0, len(body) - 1))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            body[at] = draw(st.integers(0, 255))
        elif kind == 1:
            del body[at : at + draw(st.integers(1, 40))]
        elif kind == 2:
            body[at:at] = draw(
                st.sampled_from(
                    [b"null", b"\n", b"\r", b"\n\n", b'"', b"{", b"[", b"0", b"-1", b"1e999", b"NaN", b"\\ud800"]
                )
            )
        else:
            body[at:at] = body[at : at + draw(st.integers(1, 200))]
    return bytes(body)


def read(dialect: str, data: bytes, places: list[int], n: int) -> tuple[list[Piece], Verdict]:
    adapter = DIALECTS[dialect].adapter(Call(JOB_ID, "m", created=1, n=n, max_event_bytes=4096))
    pieces = [piece for begin, end in pairwise(places) for piece in adapter.feed(data[begin:end])]
    last, verdict = adapter.close()
    return pieces + last, verdict


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=300)
@given(
    data=mutated() | st.lists(EVENTS, max_size=8).map(b"".join) | st.binary(max_size=200),
    cuts=st.lists(st.integers(0, 6000), max_size=6),
    n=st.integers(1, 3),
)
def test_any_bytes_in_any_cut_give_pieces_that_can_be_read_and_a_verdict(
    dialect: str, data: bytes, cuts: list[int], n: int
) -> None:
    pieces, verdict = read(dialect, data, sorted({0, len(data), *(cut for cut in cuts if cut < len(data))}), n)

    whole_pieces, whole_verdict = read(dialect, data, [0, len(data)], n)
    assert [piece.data for piece in pieces] == [piece.data for piece in whole_pieces]
    assert verdict == whole_verdict
    for piece in pieces:
        assert repr(ChatCompletionChunk.model_validate_json(piece.data)) == repr(piece.chunk)
        assert json.loads(piece.data.decode())["object"] == "chat.completion.chunk"
        assert piece.chunk.id
        assert piece.chunk.model
    assert verdict.completed or verdict.error is not None
    assert not (verdict.completed and not pieces)
    # What comes out is bound by what came in: an envelope for each piece, and each piece took some bytes.
    assert sum(len(piece.data) for piece in pieces) <= 5000 + 100 * len(data)


@given(
    body=st.binary(max_size=100) | OBJECTS.map(lambda value: json.dumps(value).encode()),
    status=st.integers(300, 599),
    headers=st.dictionaries(
        st.sampled_from(["retry-after", "retry-after-ms", "x-should-retry", "x-ms-retry-after-ms"]),
        st.text(max_size=30),
    ),
)
def test_any_error_answer_is_classified(body: bytes, status: int, headers: dict[str, str]) -> None:
    info = from_response(status, headers, body, now=0.0)

    assert info.upstream_status == status
    assert 0 < len(info.message) <= MAX_MESSAGE_CHARS
    assert info.retry_after_s is None or info.retry_after_s >= 0


@given(payload=OBJECTS)
def test_any_error_object_is_classified(payload: Any) -> None:
    info = from_payload(payload)

    assert info.type
    assert 0 < len(info.message) <= MAX_MESSAGE_CHARS


@given(text=st.text(max_size=200))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    assert redact(redact(text)) == redact(text)
