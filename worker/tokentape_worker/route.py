"""One upstream, ready to be called: its key, its address, and what its settings change about each request.

The key and the values of the headers are kept here and go nowhere but into the request; whatever an upstream says about
an error comes out without them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from tokentape.errors import ConfigError, InvalidRequest
from tokentape.job import ErrorInfo
from tokentape.settings import Upstream

from .classify import redact, shorten
from .dialects import Dialect, WireRequest
from .dialects.anthropic import VERSION, Anthropic
from .dialects.gemini import Gemini
from .dialects.openai import OpenAI

DIALECTS: Final[Mapping[str, Dialect]] = {"openai": OpenAI(), "anthropic": Anthropic(), "gemini": Gemini()}

#: Headers that carry a key.
_KEY_HEADERS: Final = frozenset({"authorization", "x-api-key", "x-goog-api-key", "api-key"})
Auth = Literal["bearer", "x-api-key", "x-goog-api-key", "api-key", "none"]
_AUTH: Final[Mapping[str, Auth]] = {"openai": "bearer", "anthropic": "x-api-key", "gemini": "x-goog-api-key"}
#: What stands between the host and the path, where the base URL has no version in it.
_VERSIONS: Final = {"openai": "", "anthropic": "/v1", "gemini": "/v1beta"}
#: What a list of all models in one page is asked for with.
_LISTING: Final[Mapping[str, Mapping[str, str]]] = {
    "openai": {},
    "anthropic": {"limit": "1000"},
    "gemini": {"pageSize": "1000"},
}
_VERSION: Final = re.compile(r"/v\d+\w*(?:/|$)")
#: A header's value shorter than this is no secret, and taking it out of messages would make them unreadable.
_SECRET_CHARS: Final = 8


class Route:
    """One upstream. `unusable` says why it cannot be called; `turns` holds back calls beyond `max_concurrency`."""

    def __init__(self, name: str, upstream: Upstream) -> None:
        self.name = name
        self.upstream = upstream
        self.dialect = DIALECTS[upstream.dialect]
        self.turns = asyncio.Semaphore(upstream.max_concurrency)
        self.unusable: ErrorInfo | None = None
        self._key: str | None = None
        self._read_key()
        values = [*upstream.headers.values(), *upstream.query.values()]
        self._secrets = [value for value in values if len(value) >= _SECRET_CHARS] + ([self._key] if self._key else [])

    def wire(self, body: Mapping[str, Any], *, native: bool) -> WireRequest:
        """The request as it goes out. Raises InvalidRequest for what this upstream has no word for."""
        request = self.dialect.request(body, self.upstream, native=native)
        fields = dict(request.body)
        if not native:
            for field in self.upstream.drop_fields:
                fields.pop(field, None)
            for ours, theirs in self.upstream.rename_fields.items():
                if ours in fields:
                    fields[theirs] = fields.pop(ours)
        headers = {
            "content-type": "application/json",
            "accept": "text/event-stream" if request.streamed else "application/json",
            "accept-encoding": "identity",
            **request.headers,
            **self._auth(),
            **{name.lower(): value for name, value in self.upstream.headers.items()},
        }
        query = {**request.query, **self.upstream.query}
        return WireRequest(request.path, headers, fields, query, request.streamed, request.dropped)

    def url(self, request: WireRequest, model: str) -> str:
        """Where a request goes. A query of the base URL stays, and `{model}` in its path is the model (Azure)."""
        base = urlsplit(self.upstream.base_url)
        path = base.path.replace("{model}", quote(model, safe="")).rstrip("/")
        if not _VERSION.search(path):
            path += _VERSIONS[self.upstream.dialect]
        query = urlencode([*parse_qsl(base.query, keep_blank_values=True), *request.query.items()])
        return urlunsplit((base.scheme, base.netloc, path + request.path, query, ""))

    @property
    def has_key(self) -> bool:
        """Whether calls carry a key, be it among the headers or in the query of the settings."""
        names = {name.lower() for name in self.upstream.headers}
        return bool(self._auth() or names & _KEY_HEADERS or "key" in self.upstream.query)

    def listing(self, *, with_key: bool = True) -> tuple[str, dict[str, str]]:
        """Where this upstream lists its models, and the headers that ask for it."""
        named = next((model for model in self.upstream.models if not set(model) & set("*?[")), "-")
        query = {**_LISTING[self.upstream.dialect], **self.upstream.query}
        if not with_key:
            query.pop("key", None)
        request = WireRequest("/models", {}, {}, query)
        headers = {
            "accept": "application/json",
            "accept-encoding": "identity",
            **(
                {"anthropic-version": self.upstream.anthropic_version or VERSION}
                if self.upstream.dialect == "anthropic"
                else {}
            ),
            **(self._auth() if with_key else {}),
            **{name.lower(): value for name, value in self.upstream.headers.items()},
        }
        if not with_key:
            headers = {name: value for name, value in headers.items() if name not in _KEY_HEADERS}
        return self.url(request, named), headers

    def blame(self, info: ErrorInfo) -> ErrorInfo:
        """The error with the upstream's name, and without its secrets."""
        message = shorten(f"{self.name}: {redact(info.message, self._secrets)}")
        code = redact(info.code, self._secrets) if info.code else info.code
        return info.model_copy(update={"message": message, "code": code})

    def refusal(self, error: InvalidRequest) -> ErrorInfo:
        """A request that cannot be said in this upstream's dialect."""
        info = ErrorInfo(type="invalid_request", code="unsupported_parameter", message=str(error))
        return self.blame(info)

    def _auth(self) -> dict[str, str]:
        auth = self.upstream.auth or _AUTH[self.upstream.dialect]
        if not self._key or auth == "none":
            return {}
        return {"authorization": f"Bearer {self._key}"} if auth == "bearer" else {auth: self._key}

    def _read_key(self) -> None:
        problem = None
        try:
            self._key = self.upstream.api_key()
            problem = "api_key_file is empty" if self._key == "" else None
        except ConfigError as error:
            problem = str(error)
        except (OSError, ValueError):  # not text; its message would quote the file
            problem = "api_key_file cannot be read as text"
        if self._key and not (self._key.isascii() and self._key.isprintable() and " " not in self._key):
            problem, self._key = "the key holds characters that no key has", None
        if problem is not None:
            self.unusable = ErrorInfo(type="authentication_error", code="no_api_key", message=f"{self.name}: {problem}")
