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

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import structlog

from tokentape.errors import ConfigError, InvalidRequest
from tokentape.job import ErrorInfo
from tokentape.settings import Settings, Upstream

from . import dialects
from .fan_out import FanOut
from .route import Route
from .transport import new_client
from .upstream_call import UpstreamCall, UpstreamError

__all__ = ["UpstreamCall", "UpstreamError", "Upstreams"]

log: structlog.stdlib.BoundLogger = structlog.get_logger("tokentape.worker")


class Upstreams:
    """All upstreams of a worker, over one HTTP client. Enter it once, in the loop that makes the calls.

    Keys are read on entering. Where one is missing, that is logged, and calls to that upstream fail; the others work.
    Entering raises ConfigError where no upstream can be called, or for a `ca_file` that cannot be used: a worker that
    takes jobs to fail them harms more than one that does not start. Without `must_serve` not for missing keys: who has
    a job already ends it on its tape, where somebody waits. `clock` gives Unix time in seconds.
    """

    def __init__(self, settings: Settings, *, must_serve: bool = True, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._must_serve = must_serve
        self._clock = clock
        self._routes: dict[str, Route] = {}
        self._clients: dict[tuple[Path | None, str | None], httpx.AsyncClient] | None = None

    async def __aenter__(self) -> Self:
        self._routes = {name: Route(name, upstream) for name, upstream in self._settings.upstreams.items()}
        unusable = [route.unusable.message for route in self._routes.values() if route.unusable is not None]
        if unusable and len(unusable) == len(self._routes) and self._must_serve:
            raise ConfigError(f"no upstream can be called: {'; '.join(unusable)}")
        for message in unusable:
            log.error("upstream cannot be called", error=message)
        async with contextlib.AsyncExitStack() as opened:
            clients: dict[tuple[Path | None, str | None], httpx.AsyncClient] = {}
            for name, upstream in self._settings.upstreams.items():
                if _way(upstream) in clients:
                    continue
                try:
                    client = new_client(ca_file=upstream.ca_file, proxy=upstream.proxy)
                except ConfigError as error:
                    raise ConfigError(f"upstream {name!r}: {error}") from None
                clients[_way(upstream)] = client
                opened.push_async_callback(client.aclose)
            opened.pop_all()
        self._clients = clients
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        clients, self._clients = self._clients, None
        for client in (clients or {}).values():
            await client.aclose()

    def call(
        self, name: str, body: Mapping[str, Any], *, job_id: str, native: bool = False
    ) -> AbstractAsyncContextManager[UpstreamCall | FanOut]:
        """One answer, of all the choices that the body asks for. Entering it raises UpstreamError.

        Each call waits for its turn where `max_concurrency` are under way. Leaving closes the socket at once, unless
        the answer was read to its end: then the connection is kept for another call.
        """
        route = self._routes.get(name)
        n = choices_asked(body, native=native)
        if n == 1 or route is None or native or not (route.dialect.one_answer or route.upstream.fan_out):
            return self._call(name, body, job_id=job_id, n=n, native=native)
        one = {field: value for field, value in body.items() if field != "n"}
        answer_id = f"chatcmpl-{job_id.removeprefix('job_')}"
        return FanOut([
            functools.partial(self._call, name, one, job_id=job_id, choice=choice, answer_id=answer_id)
            for choice in range(n)
        ])  # fmt: skip

    @contextlib.asynccontextmanager
    async def _call(
        self,
        name: str,
        body: Mapping[str, Any],
        *,
        job_id: str,
        n: int = 1,
        native: bool = False,
        choice: int = 0,
        answer_id: str | None = None,
    ) -> AsyncIterator[UpstreamCall]:
        clients = self._entered()
        route = self._routes.get(name)
        if route is None:
            raise UpstreamError(
                ErrorInfo(type="invalid_request", code="unknown_upstream", message=f"there is no upstream {name!r}")
            )
        if route.unusable is not None:
            raise UpstreamError(route.unusable)
        try:
            request = route.wire(body, native=native)
        except InvalidRequest as error:
            raise UpstreamError(route.refusal(error)) from None
        if request.dropped and choice == 0:
            log.warning("fields left out", job_id=job_id, upstream=name, fields=list(request.dropped))
        model = str(body.get("model", ""))
        asked = dialects.Call(
            job_id=job_id,
            model=model,
            created=int(self._clock()),
            n=n,
            choice=choice,
            answer_id=answer_id,
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
                await call.send(clients[_way(route.upstream)], route.url(request, model), request, self._clock)
                yield call
            finally:
                await call.close()

    def _entered(self) -> dict[tuple[Path | None, str | None], httpx.AsyncClient]:
        if self._clients is None:
            raise RuntimeError("Upstreams is not entered")
        return self._clients


def _way(upstream: Upstream) -> tuple[Path | None, str | None]:
    """What a client is for: all upstreams that trust and go through the same."""
    return upstream.ca_file, upstream.proxy


def choices_asked(body: Mapping[str, Any], *, native: bool) -> int:
    """How many choices a request asks for."""
    config = body.get("generationConfig")
    n = config.get("candidateCount") if native and isinstance(config, dict) else body.get("n")
    return n if isinstance(n, int) and not isinstance(n, bool) and n >= 1 else 1
