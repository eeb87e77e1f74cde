"""Answers that no chunk can hold end as an error. An adapter raises nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokentape_worker.dialects import Call
from tokentape_worker.route import DIALECTS

JOB_ID = "job_0123456789abcdef0123456789abcdef"


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def event(value: str) -> bytes:
    return f"data: {value}\n\n".encode()


START = json.dumps({"type": "message_start", "message": {"id": "m", "model": "c", "usage": {}}})
TOOL = '{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"f","input":%s}}'
STOP = '{"type":"content_block_stop","index":0}'
CALL = '{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":%s}}]},"finishReason":"STOP"}]}'


@pytest.mark.parametrize("inner", [nested(900), nested(5000), '{"a": 1e999}'], ids=["deep", "deeper", "infinite"])
@pytest.mark.parametrize("dialect", ["anthropic", "gemini"])
def test_arguments_that_no_chunk_can_hold_are_an_error(dialect: str, inner: str) -> None:
    adapter = DIALECTS[dialect].adapter(Call(JOB_ID, "m", created=1))
    reads = [event(START), event(TOOL % inner), event(STOP)] if dialect == "anthropic" else [event(CALL % inner)]

    pieces: list[Any] = [piece for data in reads for piece in adapter.feed(data)]
    last, verdict = adapter.close()

    assert all(json.loads(piece.data)["object"] == "chat.completion.chunk" for piece in pieces + last)
    assert dialect == "gemini" or verdict.error is not None
