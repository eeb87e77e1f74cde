"""Well-formed answers of Anthropic and Gemini, as hypothesis builds them: lists of events, and the bytes they make.

Well-formed is what the vendors' references say of their streams, with everything that they leave open left open: how a
text or an input is cut into fragments, which counts a usage has, where pings stand, whether a zero is written.
"""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import strategies as st

Event = dict[str, Any]

#: With line ends that only some know (U+2028, U+0085), and characters of two, three and four bytes.
texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('é\u2028\u0085😀\r\n\\"'), max_size=12)
names = st.text("abcdefg_", min_size=1, max_size=6)
counts = st.integers(0, 5000)
signatures = st.binary(min_size=1, max_size=12).map(lambda data: base64.b64encode(data).decode())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(texts, json_values, max_size=4)


def fragments(draw: st.DrawFn, text: str) -> list[str]:
    """The text in pieces, some of them empty."""
    cuts = draw(st.lists(st.integers(0, len(text)), max_size=5))
    return [text[begin:end] for begin, end in pairwise(sorted([0, *cuts, len(text)]))]


def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The bytes in reads of any size."""
    places = sorted({0, len(data), *draw(st.lists(st.integers(0, len(data)), max_size=12))})
    return [data[begin:end] for begin, end in pairwise(places)]


def written(draw: st.DrawFn, value: Any) -> str:
    """JSON in one of the ways in which servers write it. Whole characters only: half of a pair is no fragment."""
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    return json.dumps(value, ensure_ascii=False, separators=separators)


# ---- Anthropic

ANTHROPIC_STOPS = [
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal", "model_context_window_exceeded",
]  # fmt: skip

_web_citations = st.fixed_dictionaries(
    {
        "type": st.just("web_search_result_location"),
        "url": names.map("https://{}.example/".format),
        "title": st.none() | texts,
        "cited_text": texts,
        "encrypted_index": signatures,
    }
)
_page_citations = st.fixed_dictionaries(
    {
        "type": st.just("page_location"),
        "cited_text": texts,
        "document_index": st.integers(0, 3),
        "document_title": st.none() | texts,
        "start_page_number": st.integers(1, 9),
        "end_page_number": st.integers(2, 10),
    }
)
_web_result = {
    "type": "web_search_result", "url": "https://a.example/", "title": "A", "encrypted_content": "x", "page_age": None,
}  # fmt: skip


class _Block(NamedTuple):
    start: Event
    deltas: list[Event]


def _text_block(draw: st.DrawFn) -> _Block:
    deltas: list[Event] = [{"type": "text_delta", "text": text} for text in draw(st.lists(texts, max_size=4))]
    cited = draw(st.lists(_web_citations | _page_citations, max_size=2))
    for citation in cited:
        deltas.insert(draw(st.integers(0, len(deltas))), {"type": "citations_delta", "citation": citation})
    return _Block({"type": "text", "text": "", **({"citations": []} if cited else {})}, deltas)


def _thinking_block(draw: st.DrawFn) -> _Block:
    deltas = [{"type": "thinking_delta", "thinking": text} for text in draw(st.lists(texts, max_size=3))]
    deltas.append({"type": "signature_delta", "signature": draw(signatures)})
    return _Block({"type": "thinking", "thinking": "", "signature": ""}, deltas)


def _tool_block(draw: st.DrawFn, kind: str, number: int) -> _Block:
    start: Event = {"type": kind, "id": f"{kind}_{number}", "name": draw(names), "input": {}}
    if kind == "server_tool_use":
        start["name"] = "web_search"
    if draw(st.booleans()):  # no input, or all of it at the start
        start["input"] = draw(st.just({}) | json_objects)
        return _Block(start, draw(st.sampled_from([[], [{"type": "input_json_delta", "partial_json": ""}]])))
    pieces = fragments(draw, written(draw, draw(json_objects)))
    return _Block(start, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces])


def _block(draw: st.DrawFn, kind: str, number: int) -> _Block:
    if kind == "text":
        return _text_block(draw)
    if kind == "thinking":
        return _thinking_block(draw)
    if kind == "redacted_thinking":
        return _Block({"type": kind, "data": draw(signatures)}, [])
    if kind == "web_search_tool_result":
        return _Block({"type": kind, "tool_use_id": "server_tool_use_0", "content": [_web_result]}, [])
    return _tool_block(draw, kind, number)


_KINDS = ["text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "web_search_tool_result"]
_cache_counts: dict[str, st.SearchStrategy[Any]] = {
    "cache_creation_input_tokens": st.none() | counts,
    "cache_read_input_tokens": st.none() | counts,
}
_thinking_counts = st.none() | st.fixed_dictionaries({"thinking_tokens": counts})


@st.composite
def anthropic_events(draw: st.DrawFn) -> list[Event]:
    """One message, from its message_start to its message_stop."""
    usage = draw(st.fixed_dictionaries({"input_tokens": counts, "output_tokens": counts}, optional=_cache_counts))
    message: Event = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": usage}
    events: list[Event] = [{"type": "message_start", "message": message}]
    for index, kind in enumerate(draw(st.lists(st.sampled_from(_KINDS), max_size=5))):
        block = _block(draw, kind, index)
        events.append({"type": "content_block_start", "index": index, "content_block": block.start})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in block.deltas]
        events.append({"type": "content_block_stop", "index": index})
    for at in draw(st.lists(st.integers(1, len(events)), max_size=2)):
        events.insert(at, {"type": "ping"})
    return [*events, _message_delta(draw), {"type": "message_stop"}]


def _message_delta(draw: st.DrawFn) -> Event:
    delta: Event = {"stop_reason": draw(st.sampled_from(ANTHROPIC_STOPS)), "stop_sequence": None}
    if delta["stop_reason"] == "stop_sequence":
        delta["stop_sequence"] = draw(texts)
    if delta["stop_reason"] == "refusal":
        details = {"type": "refusal", "category": "cyber", "explanation": draw(st.none() | texts)}
        delta["stop_details"] = draw(st.none() | st.just(details))
    usage = st.fixed_dictionaries(
        {"output_tokens": counts},
        optional={"input_tokens": st.none() | counts, **_cache_counts, "output_tokens_details": _thinking_counts},
    )
    return {"type": "message_delta", "delta": delta, "usage": draw(usage)}


def anthropic_bytes(events: list[Event], line_end: str = "\n") -> bytes:
    """What the API sends."""
    lines = (
        f"event: {event['type']}{line_end}data: {json.dumps(event, ensure_ascii=False)}{line_end}{line_end}"
        for event in events
    )
    return "".join(lines).encode()


# ---- Gemini

GEMINI_STOPS = [
    "STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "LANGUAGE", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII",
]  # fmt: skip


def _part(draw: st.DrawFn, kind: str, index: int, number: int) -> Event:
    part: Event
    if kind == "functionCall":
        call: Event = {"name": draw(names)}
        if draw(st.booleans()):
            call["id"] = f"call_{index}_{number}"
        if draw(st.booleans()):
            call["args"] = draw(json_objects)
        part = {"functionCall": call}
    else:
        part = {"text": draw(texts), **({"thought": True} if kind == "thought" else {})}
    if kind != "thought" and draw(st.booleans()):
        part["thoughtSignature"] = draw(signatures)
    return part


_tokens = st.fixed_dictionaries({"token": texts, "tokenId": counts, "logProbability": st.floats(-20, 0)})


@st.composite
def _logprobs(draw: st.DrawFn) -> Event:
    chosen = draw(st.lists(_tokens, min_size=1, max_size=2))
    top = [{"candidates": draw(st.lists(_tokens, max_size=2))} for _ in chosen]
    return {"chosenCandidates": chosen, **draw(st.sampled_from([{}, {"topCandidates": top}]))}


def _grounding(draw: st.DrawFn, text: str) -> Event:
    """What a search found, and which stretches of the text it supports: counted in bytes, a zero left out."""
    pages = [{"web": {"uri": f"https://{name}.example/", "title": name}} for name in draw(st.lists(names, max_size=3))]
    supports = []
    for _ in range(draw(st.integers(0, 3)) if pages and text else 0):
        begin, end = sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        segment: Event = {"endIndex": len(text[:end].encode()), "text": text[begin:end]}
        if begin:
            segment["startIndex"] = len(text[:begin].encode())
        places = draw(st.lists(st.integers(0, len(pages) - 1), min_size=1, max_size=2, unique=True))
        supports.append({"segment": segment, "groundingChunkIndices": places})
    return {"groundingChunks": pages, "groundingSupports": supports}


def _steps(draw: st.DrawFn, index: int) -> list[Event]:
    """One candidate: its pieces, the last with a finish reason."""
    kinds = st.lists(st.sampled_from(["text", "text", "thought", "functionCall"]), max_size=2)
    steps: list[Event] = []
    sometimes = st.booleans()
    text = ""
    for number in range(draw(st.integers(1, 4))):
        parts = [_part(draw, kind, index, 10 * number + at) for at, kind in enumerate(draw(kinds))]
        text += "".join(part["text"] for part in parts if "text" in part and "thought" not in part)
        step: Event = {"content": {"role": "model", "parts": parts}} if draw(sometimes) or parts else {}
        if draw(sometimes) and parts:
            step["logprobsResult"] = draw(_logprobs())
        steps.append(step)
    steps[-1]["finishReason"] = draw(st.sampled_from(GEMINI_STOPS))
    if draw(sometimes):
        steps[-1]["groundingMetadata"] = _grounding(draw, text)
    return [{"index": index, **step} for step in steps]


@st.composite
def gemini_events(draw: st.DrawFn) -> list[Event]:
    """One answer of one to three candidates, the last response with the whole usage."""
    waiting = [_steps(draw, index) for index in range(draw(st.integers(1, 3)))]
    zeros = draw(st.booleans())  # protobuf's JSON leaves them out; gateways write them
    events: list[Event] = []
    while waiting := [steps for steps in waiting if steps]:
        chosen = draw(st.lists(st.sampled_from(range(len(waiting))), min_size=1, max_size=3, unique=True))
        candidates = [waiting[place].pop(0) for place in chosen]
        for candidate in candidates:
            if candidate["index"] == 0 and not zeros:
                del candidate["index"]
        events.append({"candidates": candidates, "modelVersion": "gemini-x", "responseId": "r1"})
        if draw(st.booleans()):
            events[-1]["usageMetadata"] = draw(st.sampled_from([{"trafficType": "ON_DEMAND"}, {"promptTokenCount": 1}]))
    events[-1]["usageMetadata"] = _usage(draw)
    return events


def _usage(draw: st.DrawFn) -> Event:
    usage = draw(
        st.fixed_dictionaries(
            {"promptTokenCount": counts, "candidatesTokenCount": counts},
            optional={"thoughtsTokenCount": counts, "toolUsePromptTokenCount": counts},
        )
    )
    usage["totalTokenCount"] = sum(usage.values())
    if draw(st.booleans()):
        usage["cachedContentTokenCount"] = draw(counts)
    return usage


def candidates_of(events: list[Event]) -> int:
    """How many candidates an answer has."""
    return len({candidate.get("index", 0) for event in events for candidate in event["candidates"]})


def gemini_bytes(events: list[Event]) -> bytes:
    """What the API sends with `alt=sse`."""
    return "".join(f"data: {json.dumps(event, ensure_ascii=False)}\r\n\r\n" for event in events).encode()
