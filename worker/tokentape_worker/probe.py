"""What `tokentape doctor` asks the upstreams: whether they are reached as a call would reach them, and take the key.

A GET of the list of models, with the key, the address and the way out that calls have; it costs nothing and counts
against no limit of ours. A key is accepted where the same list is refused without it: some APIs show it to everybody.
It is refused where the answer says so: 401, or a 400 whose reason is the key (Gemini). A 403 is about the list alone:
a key may be restricted to chat, and OpenAI answers 403 or 401 `missing_scope` then.
Answers are read up to a bound, and nothing of them but names of models and the words of an error is kept.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from tokentape.doctor_facts import UNUSABLE, UpstreamFacts
from tokentape.errors import ConfigError
from tokentape.job import ErrorInfo
from tokentape.settings import Upstream

from .classify import from_response
from .route import Route
from .transport import TRANSPORT_ERRORS, explain, new_client

#: Until the whole list is there.
_PATIENCE_S: Final = 10.0
#: The longest list that is read; openrouter's is half a megabyte.
_MAX_LIST_BYTES: Final = 4 * 1024 * 1024
_NO_LIST: Final = frozenset({404, 405, 501})
#: What a list adds to a name that is called without: Anthropic and OpenAI a date, Ollama a tag.
_NEWEST: Final = re.compile(r"-\d{8}|-\d{4}-\d{2}-\d{2}|:latest")
_FORBIDDEN: Final = 403


@dataclass(frozen=True)
class _Answer:
    """`error` is None for a success. `body` is None where the list was too long."""

    status: int | None
    error: ErrorInfo | None = None
    body: bytes | None = None

    @property
    def refused(self) -> bool:
        return self.error is not None and self.error.type == "authentication_error" and not self.forbidden

    @property
    def forbidden(self) -> bool:
        return self.error is not None and (self.status == _FORBIDDEN or self.error.code == "missing_scope")


def probe(upstreams: Mapping[str, Upstream]) -> Sequence[UpstreamFacts]:
    """Ask all of them at once. Takes a loop of its own."""
    return asyncio.run(_probe_all(upstreams))


async def _probe_all(upstreams: Mapping[str, Upstream]) -> list[UpstreamFacts]:
    return list(await asyncio.gather(*(_probe(Route(name, upstream)) for name, upstream in upstreams.items())))


async def _probe(route: Route) -> UpstreamFacts:
    address = urlsplit(route.listing()[0]).netloc.rpartition("@")[2]
    if route.unusable is not None:
        return UpstreamFacts(route.name, address, key="missing", key_note=route.unusable.message)
    try:
        client = new_client(ca_file=route.upstream.ca_file, proxy=route.upstream.proxy)
    except ConfigError as error:
        return UpstreamFacts(route.name, address, key="unchecked", problem=str(error), code=UNUSABLE)
    async with client:
        answer = await _get(client, route, with_key=True)
        without = await _get(client, route, with_key=False) if answer.error is None and route.has_key else None
    return _judge(route, address, answer, without)


async def _get(client: httpx.AsyncClient, route: Route, *, with_key: bool) -> _Answer:
    url, headers = route.listing(with_key=with_key)
    connect_s = route.upstream.connect_timeout_s
    try:
        async with asyncio.timeout(_PATIENCE_S):
            timeout = httpx.Timeout(None, connect=connect_s)
            async with client.stream("GET", url, headers=headers, timeout=timeout) as response:
                body = await _read(response)
    except TRANSPORT_ERRORS as error:  # TimeoutError is one: an OSError
        return _Answer(None, route.blame(explain(error)))
    if response.is_success:
        return _Answer(response.status_code, None, body)
    info = from_response(response.status_code, response.headers, body or b"", now=time.time())
    return _Answer(response.status_code, route.blame(info))


async def _read(response: httpx.Response) -> bytes | None:
    parts, length = [], 0
    async for part in response.aiter_bytes():
        length += len(part)
        if length > _MAX_LIST_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def _judge(route: Route, address: str, answer: _Answer, without: _Answer | None) -> UpstreamFacts:
    facts = UpstreamFacts(route.name, address, key="unchecked", status=answer.status)
    if answer.error is not None:
        return _judge_error(route, facts, answer, answer.error)
    rows = None if answer.body is None else _rows(answer.body)
    if answer.body is not None and rows is None:  # a web page, where base_url is that of a user interface
        return replace(facts, doubt="path", key_note=f"what it has at {_path(route)} is no list of models")
    named = [model for model in route.upstream.models if not set(model) & set("*?[")]
    facts = replace(facts, unlisted=tuple(model for model in named if rows and not _known(model, rows)))
    if without is None:
        return replace(facts, key="none")
    if without.error is None:
        return replace(facts, key_note="it shows its list of models without a key too")
    if without.error.retryable:
        return replace(facts, key_note="asked without the key, to see the difference, it did not answer")
    return replace(facts, key="accepted")


def _judge_error(route: Route, facts: UpstreamFacts, answer: _Answer, error: ErrorInfo) -> UpstreamFacts:
    message = error.message.removeprefix(f"{route.name}: ")
    facts = replace(facts, code=error.code)
    # Without any key, Gemini answers 403.
    if answer.refused or (answer.forbidden and not route.has_key and route.upstream.dialect == "gemini"):
        return replace(facts, key="refused" if route.has_key else "missing", key_note=message)
    if answer.forbidden:
        return replace(facts, doubt="list", key_note=message)
    if answer.status in _NO_LIST:
        if "{model}" in route.upstream.base_url:  # Azure lists nothing by deployment
            return replace(facts, key_note="it has no list of models to try the key on")
        return replace(facts, doubt="path", key_note=f"HTTP {answer.status} for {_path(route)}")
    if error.type == "rate_limited":
        return replace(facts, doubt="busy", key_note=message)
    return replace(facts, problem=message)


def _known(model: str, listed: frozenset[str]) -> bool:
    """Whether a list has a model, or what its name stands for: the newest of a name, or a variant of it."""
    if model in listed or model.partition(":")[0] in listed:  # OpenRouter's model:online
        return True
    return any(_NEWEST.fullmatch(one.removeprefix(model.removesuffix("-latest"))) for one in listed)


def _path(route: Route) -> str:
    return urlsplit(route.listing()[0]).path


def _rows(body: bytes) -> frozenset[str] | None:
    """The names in a list of any dialect, or none of them where it goes on elsewhere. None: it is no list."""
    try:
        payload: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    rows = payload
    if isinstance(payload, Mapping):
        rows = payload.get("data", payload.get("models"))
        if payload.get("has_more") or payload.get("nextPageToken"):
            rows = []
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        return None
    return frozenset(str(row.get("id") or row.get("name")).removeprefix("models/") for row in rows)
