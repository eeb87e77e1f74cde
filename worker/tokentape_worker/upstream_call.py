"""One call to an upstream, from the request to the verdict.

Patience, per upstream:

- `connect_timeout_s`: name look-up, connection and TLS;
- `first_chunk_timeout_s`: from sending the request to the first piece. Comments and keep-alives are no pieces, so they
  extend nothing. An answer that was not asked for as a stream has at least WHOLE_ANSWER_TIMEOUT_S;
- `idle_timeout_s`: from one byte to the next, once there was a piece. An upstream that from then on sends keep-alives
  and nothing else is given up after `first_chunk_timeout_s` of them.

Only waiting counts. A caller that is slow to take the pieces costs the upstream none of its time; the socket is not
read meanwhile, so it holds the upstream back.

An answer that breaks off after every choice had its finish reason is complete: `[DONE]` would have said no more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, cast

import httpx

from tokentape.job import ErrorInfo
from tokentape.settings import Upstream

from .classify import MAX_ERROR_BODY_BYTES, from_response
from .dialects import CUT_CODES, Adapter, Piece, Verdict, WireRequest
from .dialects.body import write_json
from .patience import Patience
from .transport import TRANSPORT_ERRORS, explain

#: What an answer that is not streamed may take: all of it is written before its first byte comes.
WHOLE_ANSWER_TIMEOUT_S: Final = 600.0
#: How long the end of the body is waited for after the end marker, so that the connection can be used again.
_LINGER_S: Final = 0.1
#: How long the body of an error is waited for. The status alone says most of it.
_ERROR_BODY_S: Final = 5.0


class UpstreamError(Exception):
    """A call that got no answer, or half of one. `info` says why, and whether another call may do better."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(f"{info.type}: {info.message}")
        self.info = info

    @property
    def retry_after_s(self) -> float | None:
        """How long the upstream asked to be left alone, in seconds."""
        return self.info.retry_after_s


class UpstreamCall:
    """One call. Iterate it once, in the task that entered it; after the loop, `verdict` stands.

    `blame` makes an error one of this upstream's: with its name, without its secrets.
    """

    def __init__(
        self, upstream: Upstream, adapter: Adapter, *, max_output_bytes: int, blame: Callable[[ErrorInfo], ErrorInfo]
    ) -> None:
        self._upstream = upstream
        self._adapter = adapter
        self._left_bytes = max_output_bytes
        self._blame = blame
        self._patience = Patience()
        self._response: httpx.Response | None = None
        self._reads: AsyncGenerator[bytes, None] | None = None
        self._first_chunk_timeout_s = upstream.first_chunk_timeout_s
        self._sent_at = 0.0
        self._begun = False  # whether there was a piece
        self._quiet_since: float | None = None  # since when the wait for the next piece has lasted
        self._verdict: Verdict | None = None
        self._failure: UpstreamError | None = None

    @property
    def verdict(self) -> Verdict:
        """What the answer was. Only after it was read to its end."""
        if self._verdict is None:
            raise RuntimeError("the answer was not read to its end")
        return self._verdict

    @property
    def request_id(self) -> str | None:
        """The upstream's own name for the call, for its support."""
        headers = self._response.headers if self._response is not None else {}
        return headers.get("x-request-id") or headers.get("request-id")

    def __aiter__(self) -> UpstreamCall:
        return self

    async def __anext__(self) -> list[Piece]:
        while self._verdict is None and self._failure is None:
            if self._adapter.ended:
                await self._linger()
                pieces = self._conclude(None)
            else:
                try:
                    data = await self._patience.wait(self._next_read(), self._deadline())
                except (StopAsyncIteration, *TRANSPORT_ERRORS) as error:
                    pieces = self._conclude(self._why(error))
                else:
                    pieces = self._adapter.feed(data)
            if pieces:
                self._begun, self._quiet_since = True, None
                self._count(pieces)
                return pieces
        if self._failure is not None:
            raise self._failure
        raise StopAsyncIteration

    async def send(self, client: httpx.AsyncClient, url: str, wire: WireRequest, clock: Callable[[], float]) -> None:
        """Send the request and wait for a status. Raises UpstreamError for any that is no success."""
        if not wire.streamed:
            self._first_chunk_timeout_s = max(WHOLE_ANSWER_TIMEOUT_S, self._first_chunk_timeout_s)
        connect_s = self._upstream.connect_timeout_s
        self._sent_at = self._patience.now()
        try:
            request = client.build_request(
                "POST",
                url,
                headers=dict(wire.headers),
                content=write_json(wire.body),
                timeout=httpx.Timeout(None, connect=connect_s, pool=connect_s),
            )
            self._response = await self._patience.wait(client.send(request, stream=True), self._deadline())
        except TRANSPORT_ERRORS as error:  # TimeoutError is one: an OSError
            info = self._timed_out() if isinstance(error, TimeoutError) else explain(error)
        else:
            encoding = self._response.headers.get("content-encoding", "identity").strip().lower()
            # The stream itself is what aiter_raw would read, at the price of one generator more for each read.
            plain = encoding == "identity"
            reads = aiter(self._response.stream) if plain else self._response.aiter_bytes()  # type: ignore[arg-type]
            self._reads = cast("AsyncGenerator[bytes, None]", reads)
            if self._response.is_success:
                return
            body = await self._read_error_body()
            info = from_response(self._response.status_code, self._response.headers, body, now=clock())
        # Raised out here, so that no exception of the transport, whose repr may hold the key, hangs on to it.
        raise UpstreamError(self._blame(info))

    async def close(self) -> None:
        """Let the connection go: back to the pool if the body was read to its end, else closed. Safe to repeat."""
        self._patience.close()
        with contextlib.suppress(*TRANSPORT_ERRORS):
            if self._reads is not None:
                await self._reads.aclose()
            if self._response is not None:
                await self._response.aclose()

    def _why(self, error: BaseException) -> ErrorInfo | None:
        """Why there is no next read. None: the body is over, as it should be."""
        if isinstance(error, StopAsyncIteration):
            return None
        return self._timed_out() if isinstance(error, TimeoutError) else explain(error)

    def _next_read(self) -> Awaitable[bytes]:
        if self._reads is None:
            raise RuntimeError("the request was not sent")
        return self._reads.__anext__()

    def _conclude(self, broken: ErrorInfo | None) -> list[Piece]:
        """The body is over: the last pieces. Sets the verdict, or the failure where it broke off unfinished."""
        pieces, verdict = self._adapter.close()
        error = verdict.error
        if broken is not None and error is not None and error.code in CUT_CODES:
            self._failure = UpstreamError(self._blame(broken))
        else:
            self._verdict = Verdict(
                self._blame(error) if error is not None else None,
                verdict.finished,
                verdict.sentinel,
                verdict.synthesised,
            )
        return pieces

    def _count(self, pieces: list[Piece]) -> None:
        self._left_bytes -= sum(len(piece.data) for piece in pieces)
        if self._left_bytes < 0:
            self._verdict = None
            info = ErrorInfo(type="output_too_large", message="put out more than max_output_bytes", retryable=False)
            self._failure = UpstreamError(self._blame(info))
            raise self._failure

    def _deadline(self) -> float:
        if not self._begun:
            return self._sent_at + self._first_chunk_timeout_s
        now = self._patience.now()
        if self._quiet_since is None:
            self._quiet_since = now
        quiet_s = max(self._first_chunk_timeout_s, self._upstream.idle_timeout_s)
        return min(now + self._upstream.idle_timeout_s, self._quiet_since + quiet_s)

    def _timed_out(self) -> ErrorInfo:
        if not self._begun:
            message = f"sent no chunk within {self._first_chunk_timeout_s:g} s"
            return ErrorInfo(type="timeout", code="first_chunk_timeout", message=message, retryable=True)
        message = f"went silent in its answer (idle_timeout_s is {self._upstream.idle_timeout_s:g})"
        return ErrorInfo(type="timeout", code="idle_timeout", message=message, retryable=True)

    async def _linger(self) -> None:
        """Read what follows the end marker: nothing, mostly, and the end of the body."""
        with contextlib.suppress(StopAsyncIteration, *TRANSPORT_ERRORS):
            async with asyncio.timeout(_LINGER_S):
                while True:
                    await self._next_read()

    async def _read_error_body(self) -> bytes:
        body = bytearray()
        deadline = min(self._deadline(), self._patience.now() + _ERROR_BODY_S)
        with contextlib.suppress(StopAsyncIteration, *TRANSPORT_ERRORS):
            while len(body) < MAX_ERROR_BODY_BYTES:
                body += await self._patience.wait(self._next_read(), deadline)
        return bytes(body[:MAX_ERROR_BODY_BYTES])
