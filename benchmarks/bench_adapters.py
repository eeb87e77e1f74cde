"""What one clean chunk costs from the bytes of a read to what is published, beside what openai-python spends on it.

    python -m benchmarks.bench_adapters [--chunks 100000] [--json]

CPU of this process, in microseconds a chunk: the median of several rounds, and the fastest and slowest. One chunk is
one read, as at an upstream that streams. Nothing is sent and nothing is stored. The growth column is what a chunk of
the long answer costs over what it costs in one of 1,000: 1 is flat.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai

from tokentape.settings import Upstream
from tokentape_worker.dialects import Call
from tokentape_worker.route import DIALECTS, Route

JOB_ID = "job_0123456789abcdef0123456789abcdef"
ROUNDS = 7


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
    client = openai.OpenAI(api_key="none", base_url="http://upstream/v1", http_client=http)
    for _ in client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}], stream=True):
        pass


def us_per_chunk(run: Callable[[], None], chunks: int) -> float:
    gc.collect()
    begun = time.process_time()
    run()
    return (time.process_time() - begun) / chunks * 1e6


def measure(chunks: int) -> list[dict[str, Any]]:
    """One row for each reader. The rivals take turns, so that a noisy moment hits all of them."""
    long, short = (
        {name: make(chunks) for name, make in READS.items()},
        {name: make(1000) for name, make in READS.items()},
    )
    runs: dict[str, Callable[[], None]] = {name: functools.partial(run_adapter, name, long[name]) for name in READS}
    runs["openai-python"] = lambda: run_openai_python(long["openai"])
    times: dict[str, list[float]] = {name: [] for name in runs}
    briefly: dict[str, list[float]] = {name: [] for name in READS}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(us_per_chunk(run, chunks))
        for name in READS:
            briefly[name].append(us_per_chunk(functools.partial(run_adapter, name, short[name]), 1000))
    rival = statistics.median(times["openai-python"])
    return [
        {
            "reader": name,
            "us_a_chunk": round(statistics.median(values), 2),
            "fastest": round(min(values), 2),
            "slowest": round(max(values), 2),
            "of_openai_python": round(statistics.median(values) / rival, 2),
            "growth": round(statistics.median(values) / statistics.median(briefly[name]), 2)
            if name in briefly
            else None,
        }
        for name, values in times.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_adapters", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    Route("default", Upstream())  # what a worker imports is imported
    rows = measure(options.chunks)
    if options.json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return 0
    sys.stdout.write(f"{'reader':16}{'µs a chunk':>12}{'fastest':>10}{'slowest':>10}{'of rival':>10}{'growth':>8}\n")
    for row in rows:
        growth = "" if row["growth"] is None else row["growth"]
        sys.stdout.write(f"{row['reader']:16}{row['us_a_chunk']:>12}{row['fastest']:>10}{row['slowest']:>10}"
                         f"{row['of_openai_python']:>10}{growth:>8}\n")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
