"""W7: how fast is a finished tape read again and assembled?

`partial` reads a tape from the server in pages, checks every chunk and folds them into a completion; `follow` gives
every entry to the caller, who folds. The rival is openai-python's own accumulation of the same chunks, twice: from
their JSON, and from chunk objects that were made before, so without reading anything at all.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any

from tokentape import Client
from tokentape.chunk import ChatCompletionChunk
from tokentape.completion import Fold

from .harness import OURS, Bench, Run, Target, clocked, installed, main
from .stack import Stack

RATE = "chunks a second"
FOLLOWED = "chunks a second, followed and folded by the caller"
FROM_JSON, FROM_OBJECTS = "openai-python, from JSON in memory", "openai-python, from ready objects"


@dataclass(frozen=True)
class Sizes:
    chunks: int = 2_000
    #: Replays of one run; the fastest tells what it costs, the rest is noise of the machine.
    times: int = 10


def measure(sizes: Sizes) -> Run:
    run = Run()
    with Stack() as stack:
        stack.worker()
        (job_id,) = stack.submit(1, sizes.chunks)
        stack.wait_ended(1)
        with Client(stack.server.url) as client:
            text = client.result(job_id).text
            raw = [entry.raw for entry in client.follow(job_id) if entry.kind == "chunk"]
            _check(client.partial(job_id).text == text)
            run.add(RATE, OURS, "/s", sizes.chunks / min(_partial(client, job_id) for _ in range(sizes.times)))
            run.add(FOLLOWED, OURS, "/s", sizes.chunks / min(_follow(client, job_id) for _ in range(sizes.times)))
    if installed(run, FROM_JSON, "openai"):
        run.add(RATE, FROM_JSON, "/s", sizes.chunks / min(_from_json(raw) for _ in range(sizes.times)))
        run.add(RATE, FROM_OBJECTS, "/s", sizes.chunks / min(_from_objects(raw) for _ in range(sizes.times)))
    return run


def _partial(client: Client, job_id: str) -> float:
    with clocked() as seconds:
        client.partial(job_id)
        return seconds()


def _follow(client: Client, job_id: str) -> float:
    with clocked() as seconds:
        fold = Fold()
        for entry in client.follow(job_id):
            if isinstance(entry.data, ChatCompletionChunk):
                fold.add(entry.data)
        fold.completion()
        return seconds()


def _from_json(raw: list[bytes]) -> float:
    chunk, state = _openai()
    with clocked() as seconds:
        for data in raw:
            state.handle_chunk(chunk.model_validate_json(data))
        state.get_final_completion()
        return seconds()


def _from_objects(raw: list[bytes]) -> float:
    chunk, state = _openai()
    chunks = [chunk.model_validate_json(data) for data in raw]
    with clocked() as seconds:
        for one in chunks:
            state.handle_chunk(one)
        state.get_final_completion()
        return seconds()


def _openai() -> tuple[Any, Any]:
    """openai-python's chunk class, and a fresh state of a stream."""
    chat = importlib.import_module("openai.types.chat")
    streaming = importlib.import_module("openai.lib.streaming.chat")
    return chat.ChatCompletionChunk, streaming.ChatCompletionStreamState()


def _check(right: bool) -> None:
    if not right:
        raise RuntimeError("the replay says something else than the stored result")


BENCH = Bench(
    id="W7",
    question="Replay and assembly of a finished tape of 2,000 chunks",
    sizes=Sizes(),
    quick=Sizes(chunks=20, times=1),
    measure=measure,
    targets=[Target(RATE, 100_000.0, "least")],
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
