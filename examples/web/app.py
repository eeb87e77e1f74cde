"""A chat page over Tokentape: a stream that survives a refresh, a lost connection and a deploy of this process.

    pip install tokentape starlette uvicorn
    uvicorn app:app --timeout-graceful-shutdown 3

The browser's EventSource sends the id of the last event that it has (`Last-Event-ID`) when it connects again. The ids
here are entry ids of the tape, so the header is the cursor to go on after, in this process or in any other.

Nothing here asks who the user is. Yours must: whoever knows a job's id could read it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tokentape import (
    AsyncClient,
    BadCursor,
    Entry,
    IdempotencyConflict,
    InvalidRequest,
    JobNotFound,
    Position,
    RedisUnavailable,
    ResultTimeout,
)

PAGE = Path(__file__).with_name("page.html")
MODEL = "gpt-4o-mini"
#: Proxies close a connection that says nothing for a minute or so.
HEARTBEAT_S = 15.0


async def page(_request: Request) -> Response:
    """The chat page."""
    return FileResponse(PAGE)


async def ask(request: Request) -> Response:
    """Submit a message. A browser that sends it again, with the same key, gets the same job."""
    try:
        body = await request.json()
        message, key = body["message"], body["key"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return PlainTextResponse("expected a JSON object with a message and a key", 400)
    job = await client(request).submit(
        model=MODEL,
        messages=[{"role": "user", "content": message}],
        idempotency_key=key,
        priority="high",
    )
    return JSONResponse({"id": job.id}, status_code=201)


async def events(request: Request) -> Response:
    """The job's tape as server-sent events, from the start or after `Last-Event-ID`."""
    job_id = request.path_params["job_id"]
    # Both raise while a status code can still say what is wrong.
    after = Position.parse(request.headers.get("last-event-id") or "0-0")
    job = await client(request).status(job_id)
    if job.ended_at is not None and after >= Position.parse(job.last_entry_id):
        return Response(status_code=204)  # tells EventSource that there is nothing to come back for
    entries = client(request).follow(job_id, after)
    return StreamingResponse(
        sse(entries), media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
    )


async def cancel(request: Request) -> Response:
    """Stop the answer. What has arrived stays readable."""
    return JSONResponse({"cancelled": await client(request).cancel(request.path_params["job_id"])})


async def sse(entries: AsyncIterator[Entry]) -> AsyncIterator[bytes]:
    """Entries as events: event = kind, id = entry id, data = the entry's JSON, which has no line breaks."""
    coming: asyncio.Future[Entry | None] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(entries, None))
            # Not wait_for, which would end the follower with the wait.
            done, _ = await asyncio.wait([coming], timeout=HEARTBEAT_S)
            if not done:
                yield b": still here\n\n"
                continue
            entry, coming = coming.result(), None
            if entry is None:
                return
            yield b"id: %s\nevent: %s\ndata: %s\n\n" % (entry.id.encode(), entry.kind.encode(), entry.raw)
    except ResultTimeout:
        return  # the browser connects again, and goes on where it was
    finally:
        if coming is not None:
            coming.cancel()


def client(request: Request) -> AsyncClient:
    """The one client of this process: all its followers share one blocking read."""
    found: AsyncClient = request.app.state.client
    return found


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """One client for as long as the process runs."""
    async with AsyncClient() as app.state.client:
        yield


def answer(status_code: int) -> Any:
    """A handler that answers an error of the library with a status."""

    async def handler(_request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error), status_code)

    return handler


app = Starlette(
    routes=[
        Route("/", page),
        Route("/chats", ask, methods=["POST"]),
        Route("/chats/{job_id}/events", events),
        Route("/chats/{job_id}/cancel", cancel, methods=["POST"]),
    ],
    exception_handlers={
        InvalidRequest: answer(400),
        BadCursor: answer(400),
        JobNotFound: answer(404),
        IdempotencyConflict: answer(409),
        RedisUnavailable: answer(503),
    },
    lifespan=lifespan,
)
