"""Calls to upstreams: from a chat.completions body to pieces that can be published, and a verdict.

    async with Upstreams(settings) as upstreams:
        async with upstreams.call("default", body, job_id=job_id) as call:
            async for pieces in call:        # what one read of the network brought, never empty
                ...
        call.verdict

Two ways to fail: UpstreamError where there was no answer to read (not reached, refused, timed out, broken off), and a
verdict with an error where there was one. Both carry an ErrorInfo that names the upstream and never quotes a key.
Nothing is tried again here: that is for whoever knows what has been published.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

import httpx

from tokentape.errors import ConfigError
from tokentape.job import ErrorInfo
from tokentape.settings import Settings, Upstream

from . import dialects
from .classify import redact, shorten
from .dialects import Dialect, WireRequest
from .dialects.openai import OpenAI
from .transport import new_client
from .upstream_call import UpstreamCall, UpstreamError

__all__ = ["UpstreamCall", "UpstreamError", "Upstreams"]

_DIALECTS: Final[Mapping[str, Dialect]] = {"openai": OpenAI()}
#: A header's value shorter than this is no secret, and taking it out of messages would make them unreadable.
_SECRET_CHARS: Final = 8


class Upstreams:
    """All upstreams of a worker, over one HTTP client. Enter it once, in the loop that makes the calls.

    Keys are read on entering. Where one is missing, the calls to that upstream fail and say so; the others work.
    `clock` gives Unix time in seconds.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._routes: dict[str, _Route] = {}
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        self._routes = {name: _Route(name, upstream) for name, upstream in self._settings.upstreams.items()}
        self._client = new_client()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @contextlib.asynccontextmanager
    async def call(self, name: str, body: Mapping[str, Any], *, job_id: str) -> AsyncIterator[UpstreamCall]:
        """One call, which waits for its turn where `max_concurrency` are under way. Raises UpstreamError.

        Once entered, the upstream has answered with a success. Leaving closes the socket at once, unless the answer
        was read to its end: then the connection is kept for another call.
        """
        if self._client is None:
            raise RuntimeError("Upstreams is not entered")
        route = self._routes.get(name)
        if route is None:
            raise UpstreamError(
                ErrorInfo(type="invalid_request", code="unknown_upstream", message=f"there is no upstream {name!r}")
            )
        if route.unusable is not None or route.dialect is None:
            raise UpstreamError(route.unusable or _no_dialect(name, route.upstream))
        request = route.dialect.request(body, route.upstream, route.key)
        n = body.get("n")
        asked = dialects.Call(
            job_id=job_id,
            model=str(body.get("model", "")),
            created=int(self._clock()),
            n=n if isinstance(n, int) else 1,
            max_event_bytes=self._settings.max_output_bytes,
        )
        call = UpstreamCall(
            route.upstream,
            route.dialect.adapter(asked),
            max_output_bytes=self._settings.max_output_bytes,
            blame=route.blame,
        )
        async with route.turns:
            try:
                await call.send(self._client, route.url(request), request, self._clock)
                yield call
            finally:
                await call.close()


class _Route:
    """One upstream, ready to be called. `unusable` says why it cannot be."""

    def __init__(self, name: str, upstream: Upstream) -> None:
        self.upstream = upstream
        self.dialect = _DIALECTS.get(upstream.dialect)
        self.turns = asyncio.Semaphore(upstream.max_concurrency)
        self.key: str | None = None
        self.unusable: ErrorInfo | None = None if self.dialect else _no_dialect(name, upstream)
        self._name = name
        try:
            self.key = upstream.api_key()
            problem = "api_key_file is empty" if self.key == "" else None
        except ConfigError as error:
            problem = str(error)
        except (OSError, ValueError):  # not text; its message would quote the file
            problem = "api_key_file cannot be read as text"
        if self.key and not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            problem, self.key = "the key holds characters that no key has", None
        if problem is not None:
            self.unusable = ErrorInfo(type="authentication_error", code="no_api_key", message=f"{name}: {problem}")
        headers = (value for value in upstream.headers.values() if len(value) >= _SECRET_CHARS)
        self._secrets = [*headers, *([self.key] if self.key else [])]

    def url(self, request: WireRequest) -> str:
        """Where a request goes. A query of the base URL (Azure's api-version) stays."""
        base = urlsplit(self.upstream.base_url)
        return urlunsplit((base.scheme, base.netloc, base.path.rstrip("/") + request.path, base.query, ""))

    def blame(self, info: ErrorInfo) -> ErrorInfo:
        """The error with the upstream's name, and without its secrets."""
        message = shorten(f"{self._name}: {redact(info.message, self._secrets)}")
        code = redact(info.code, self._secrets) if info.code else info.code
        return info.model_copy(update={"message": message, "code": code})


def _no_dialect(name: str, upstream: Upstream) -> ErrorInfo:
    message = f"{name}: this worker does not speak the dialect {upstream.dialect!r}"
    return ErrorInfo(type="invalid_request", code="unknown_dialect", message=message)
