"""The rivals, each as its users run it, in processes of their own.

    python -P -m benchmarks.rivals PROGRAM [ARGUMENT...]

A program prints {"ready": true} once it is set up. Where there is a choice, it is made in the rival's favour, and said
here: openai-python gets uvloop, as our worker has it; what is compared with a queue's worker runs jobs that do nothing
at all, beside ours, which call an API.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, Final

QUEUE: Final = "rival"
#: Where each queue counts what it has finished.
RQ_FINISHED: Final = f"rq:finished:{QUEUE}"
STREAQ_FINISHED: Final = f"streaq:{QUEUE}:index:results"


def say(facts: dict[str, Any]) -> None:
    """One line of JSON on stdout, for the process that started this one."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


# ---- openai-python


def read_by_openai(base_url: str, streams: str, chunks: str, interval_ms: str) -> None:
    """Read so many streams at once, and keep nothing."""
    import openai  # noqa: PLC0415  (each program imports what it runs)
    import uvloop  # noqa: PLC0415

    async def read() -> None:
        client = openai.AsyncOpenAI(api_key="none", base_url=base_url)
        say({"ready": True})

        async def one() -> None:
            async for _ in await client.chat.completions.create(
                model="paced",
                messages=[{"role": "user", "content": "Why is the sky blue?"}],
                stream=True,
                extra_body={"simulate": {"chunks": int(chunks), "interval_ms": float(interval_ms)}},
            ):
                pass

        await asyncio.gather(*(one() for _ in range(int(streams))))

    uvloop.run(read())


# ---- RQ


def nothing() -> None:
    """A job."""


def stream_in_job(base_url: str, chunks: int, interval_ms: float) -> None:
    """A job of RQ's that reads one stream, as one writes it without tokentape."""
    import openai  # noqa: PLC0415

    client = openai.OpenAI(api_key="none", base_url=base_url)
    for _ in client.chat.completions.create(
        model="paced",
        messages=[{"role": "user", "content": "Why is the sky blue?"}],
        stream=True,
        extra_body={"simulate": {"chunks": chunks, "interval_ms": interval_ms}},
    ):
        pass


def rq_worker(kind: str) -> None:
    """A stock worker: `Worker`, which forks for each job, or `SimpleWorker`, which does not."""
    import redis  # noqa: PLC0415
    import rq  # noqa: PLC0415

    workers = {"Worker": rq.Worker, "SimpleWorker": rq.SimpleWorker}
    worker = workers[kind]([QUEUE], connection=redis.Redis.from_url(os.environ["TOKENTAPE_REDIS_URL"]))
    say({"ready": True})
    worker.work(logging_level="WARNING")


def rq_enqueue(url: str, count: int) -> None:
    """Jobs that do nothing, for a stock worker."""
    import redis  # noqa: PLC0415
    import rq  # noqa: PLC0415

    with redis.Redis.from_url(url) as connection:
        rq.Queue(QUEUE, connection=connection).enqueue_many([rq.Queue.prepare_data(nothing) for _ in range(count)])


def rq_enqueue_streams(url: str, count: int, *arguments: object) -> None:
    """Jobs that read a stream each, for stock workers."""
    import redis  # noqa: PLC0415
    import rq  # noqa: PLC0415

    with redis.Redis.from_url(url) as connection:
        jobs = [rq.Queue.prepare_data(stream_in_job, arguments) for _ in range(count)]
        rq.Queue(QUEUE, connection=connection).enqueue_many(jobs)


# ---- streaQ


def streaq_worker(concurrency: str) -> None:
    """streaQ's asyncio worker, with uvloop: one process, many jobs at once."""
    worker = _streaq(os.environ["TOKENTAPE_REDIS_URL"], int(concurrency))
    logging.getLogger("streaq").setLevel(logging.WARNING)
    say({"ready": True})
    worker.run_sync()


def streaq_enqueue(url: str, count: int) -> None:
    worker = _streaq(url, 1)

    async def enqueue() -> None:
        async with worker:
            await worker.enqueue_many([worker.enqueue_unsafe("nothing") for _ in range(count)])

    asyncio.run(enqueue())


def _streaq(url: str, concurrency: int) -> Any:
    # By name: rivals that are not installed are not known to the type checker either.
    streaq: Any = importlib.import_module("streaq")
    worker = streaq.Worker(redis_url=url, queue_name=QUEUE, concurrency=concurrency, anyio_kwargs={"use_uvloop": True})

    async def job() -> None:
        pass

    worker.task(name="nothing")(job)
    return worker


PROGRAMS: Final[dict[str, Callable[..., None]]] = {
    "openai-reader": read_by_openai,
    "rq-worker": rq_worker,
    "streaq-worker": streaq_worker,
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
