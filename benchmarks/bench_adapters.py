"""What does a chunk cost each adapter, from the bytes of a read to what is published?

CPU of this process; one chunk is one read, as at an upstream that streams. Nothing is sent and nothing is stored. The
rival is openai-python, on the bytes of the openai dialect, from memory too. `growth` is what a chunk of the long answer
costs over what it costs in one of 1,000: 1 is flat.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from tokentape.settings import Upstream
from tokentape_worker.dialects import Call
from tokentape_worker.route import DIALECTS, Route

from .harness import OURS, Bench, Run, installed, main

JOB_ID = "job_0123456789abcdef0123456789abcdef"
RIVAL = "openai-python, reading only"


@dataclass(frozen=True)
class Sizes:
    chunks: int = 100_000
    short: int = 1_000
    rival_chunks: int = 20_000


def openai_reads(count: int) -> list[bytes]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": f" word{number % 100}"}, None) for number in range(count)]
    deltas.append(({}, "stop"))
    choices = [[{"index": 0, "delta": delta, "finish_reason": reason}] for delta, reason in deltas]
    return [*(_data({**head, "choices": choice}) for choice in choices), b"data: [DONE]\n\n"]


def anthropic_reads(count: int) -> list[bytes]:
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "c",
        "content": [],
        "stop_reason": None,
    }
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "usage": {"input_tokens": 1, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    ]
    for number in range(count):
        delta = {"type": "text_delta", "text": f" word{number % 100}"}
        events.append({"type": "content_block_delta", "index": 0, "delta": delta})
    events.append({"type": "content_block_stop", "index": 0})
    events.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": count}})
    events.append({"type": "message_stop"})
    return [f"event: {event['type']}\n".encode() + _data(event) for event in events]


def gemini_reads(count: int) -> list[bytes]:
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
    responses: list[dict[str, Any]] = [
        {
            "candidates": [{"content": {"parts": [{"text": f" word{number % 100}"}], "role": "model"}, "index": 0}],
            "usageMetadata": usage,
            "modelVersion": "g",
            "responseId": "r",
        }
        for number in range(count)
    ]
    responses[-1]["candidates"][0]["finishReason"] = "STOP"
    return [_data(response).replace(b"\n", b"\r\n") for response in responses]


READS = {"openai": openai_reads, "anthropic": anthropic_reads, "gemini": gemini_reads}


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def run_adapter(dialect: str, reads: list[bytes]) -> None:
    """What the worker does with each read: the pieces are dropped."""
    adapter = DIALECTS[dialect].adapter(Call(JOB_ID, "m", created=1))
    for data in reads:
        adapter.feed(data)
    _, verdict = adapter.close()
    if not verdict.completed:
        raise SystemExit(f"{dialect}: {verdict.error}")


def run_openai_python(reads: list[bytes]) -> None:
    """openai-python reading the same stream, from memory."""

    class Body(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            return iter(reads)

    headers = {"content-type": "text/event-stream"}
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, headers=headers, stream=Body()))
    http: Any = httpx.Client(transport=transport)
    client = importlib.import_module("openai").OpenAI(api_key="none", base_url="http://upstream/v1", http_client=http)
    for _ in client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}], stream=True):
        pass


def us_per_chunk(read: Callable[[list[bytes]], None], reads: list[bytes], chunks: int, times: int = 1) -> float:
    gc.collect()
    begun = time.process_time()
    for _ in range(times):
        read(reads)
    return (time.process_time() - begun) / (chunks * times) * 1e6


def measure(sizes: Sizes) -> Run:
    run = Run()
    Route("default", Upstream())  # what a worker imports is imported
    for dialect, make in READS.items():
        adapter = functools.partial(run_adapter, dialect)
        # Many short answers: one of them is too little to be measured.
        briefly = us_per_chunk(adapter, make(sizes.short), sizes.short, times=20)
        cost = us_per_chunk(adapter, make(sizes.chunks), sizes.chunks)
        run.add(f"CPU a chunk, {dialect}", OURS, "µs", cost)
        run.add(f"growth, {dialect}", OURS, "times", cost / briefly)
    if installed(run, RIVAL, "openai"):
        run_openai_python(openai_reads(1))  # what it imports is imported
        rival = us_per_chunk(run_openai_python, openai_reads(sizes.rival_chunks), sizes.rival_chunks)
        run.add("CPU a chunk, openai", RIVAL, "µs", rival)
    return run


BENCH = Bench(
    id="adapters",
    question="CPU of each dialect's adapter a chunk, beside openai-python",
    sizes=Sizes(),
    quick=Sizes(chunks=200, short=100, rival_chunks=100),
    measure=measure,
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
