"""Settings: defaults, then `tokentape.toml`, then `TOKENTAPE_*` in the environment, parsed once.

Where none of them names a server, the `tokentape` command goes by what finder.py finds.

docs/settings.md is made of this file by `script/docs-settings`: what stands in `#:` above a setting is its meaning
there.

Every field is `TOKENTAPE_` and its name in capitals in the environment, and its plain name in the file, which
`TOKENTAPE_CONFIG` points to; the tables `[upstreams.NAME]` stand in the file only. Durations end in `_s`, sizes
in `_bytes`. Keys for upstreams are named (`api_key_env`, `api_key_file`), never written down, and are read by
the worker alone.

What is secret may stand in a file of its own, as Docker and Kubernetes mount it: an address with its password in the
file that `TOKENTAPE_REDIS_URL_FILE` or `TOKENTAPE_TAPE_URL_FILE` names; the password alone, for addresses that hold
none, in `redis_password_file`; the key of the one upstream that needs no config file in `OPENAI_API_KEY_FILE`.
"""

from __future__ import annotations

import fnmatch
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from .errors import ConfigError
from .finder import found
from .masking import shown
from .secret_files import read_secret, with_password
from .settings_errors import ENV_PREFIX, explain, nearest

__all__ = ["DEFAULT_BASE_URL", "DEFAULT_REDIS_URL", "ENV_PREFIX", "Loaded", "Settings", "Source", "Upstream", "load"]

DEFAULT_REDIS_URL: Final = "redis://127.0.0.1:6379/0"
DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"
DEFAULT_BASE_URLS: Final = {
    "openai": DEFAULT_BASE_URL,
    "anthropic": "https://api.anthropic.com",
    "gemini": "https://generativelanguage.googleapis.com",
}


def _no_switch(value: Any) -> Any:
    """pydantic takes true for 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _named(value: Any) -> Any:
    """An empty name, as of a variable that is set to nothing, would be the folder that we are in."""
    if value == "":
        raise ValueError("must not be empty; leave it away instead")
    return value


Number = Annotated[float, BeforeValidator(_no_switch)]
Whole = Annotated[int, BeforeValidator(_no_switch)]
Seconds = Annotated[Number, Field(gt=0, le=30 * 86_400)]
Bytes = Annotated[Whole, Field(ge=1024)]
Count = Annotated[Whole, Field(ge=1)]
File = Annotated[Path, BeforeValidator(_named)]

_SERVER_SCHEMES: Final = ("redis", "rediss", "unix")
_QUOTING: Final = "in a password, each / : @ # ? % is written as % and two hex digits"


def _server_address(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        hint = f"; did you mean redis://{url}?" if url and "@" not in url and "?" not in url else ""
        raise ValueError(f"must begin with redis://, rediss:// (TLS) or unix://{hint}")
    if scheme not in _SERVER_SCHEMES:
        raise ValueError(f"must begin with redis://, rediss:// (TLS) or unix://{nearest(scheme, _SERVER_SCHEMES)}")
    if not rest:
        raise ValueError(f"names no server, as {scheme}://127.0.0.1:6379/0 does")
    try:
        parts = urlsplit(url)
        _ = parts.port
        (parts.hostname or "").encode("idna")
    except UnicodeError:
        raise ValueError("its host is not a name that there can be") from None
    except ValueError:
        raise ValueError(f"its port is not a number up to 65535 ({_QUOTING})") from None
    if scheme != "unix" and not re.fullmatch(r"(/\d*)?", parts.path):
        raise ValueError(f"behind the host stands nothing but the number of a database, as in /0 ({_QUOTING})")
    return url


ServerAddress = Annotated[str, AfterValidator(_server_address)]


class Upstream(BaseModel, extra="forbid", frozen=True, hide_input_in_errors=True):
    """One chat API that workers may call: a `[upstreams.NAME]` table."""

    #: The API that it speaks.
    dialect: Literal["openai", "anthropic", "gemini"] = "openai"
    #: Where the API is. Unset, the vendor's own. `{model}` in it is the model that is asked for (Azure's deployments).
    base_url: str = DEFAULT_BASE_URL
    #: Name of the environment variable that holds the key.
    api_key_env: str | None = None
    #: File that holds the key; read at every worker start, white space stripped.
    api_key_file: Path | None = None
    #: Models that are sent here when a job names no upstream: names or shell patterns.
    models: tuple[str, ...] = ("*",)
    #: Calls under way at once, per worker process.
    max_concurrency: Count = 256
    #: Calls begun per minute by all workers together; 0 is no limit.
    requests_per_minute: Annotated[int, Field(ge=0)] = 0
    #: Tokens (prompt and completion) per minute of all workers together; 0 is no limit.
    tokens_per_minute: Annotated[int, Field(ge=0)] = 0
    #: Until a connection stands.
    connect_timeout_s: Seconds = 5.0
    #: From sending the request to the first chunk.
    first_chunk_timeout_s: Seconds = 60.0
    #: From one byte to the next, once chunks flow.
    idle_timeout_s: Seconds = 30.0
    #: Calls that may fail (crashes of a worker count too) before the job does.
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    #: Sent with every call, beside the key.
    headers: dict[str, str] = Field(default_factory=dict)
    #: Added to the URL of every call.
    query: dict[str, str] = Field(default_factory=dict)
    #: How the key is sent; unset, as the dialect has it. `api-key` is Azure's.
    auth: Literal["bearer", "x-api-key", "x-goog-api-key", "api-key", "none"] | None = None
    #: Leave out what the dialect has no word for, with a warning, instead of refusing the request.
    drop_unsupported: bool = False
    #: Fields of the request that this upstream does not take: never sent.
    drop_fields: tuple[str, ...] = ()
    #: Fields that it knows by another name: ours = theirs.
    rename_fields: dict[str, str] = Field(default_factory=dict)
    #: Make n calls for n choices, where the upstream ignores `n`. The anthropic dialect always does.
    fan_out: bool = False
    #: The version of Anthropic's API; 2023-06-01 unless set.
    anthropic_version: str | None = None
    #: What the anthropic dialect sends as max_tokens, which it must, where a job names none.
    default_max_tokens: Count = 8192
    #: A file of certificates that are trusted instead of the system's.
    ca_file: Path | None = None
    #: http:// or https://host:port that calls go through; unset, as HTTPS_PROXY and NO_PROXY say.
    proxy: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _address_of_the_dialect(cls, values: Any) -> Any:
        if isinstance(values, dict) and "base_url" not in values and values.get("dialect") in DEFAULT_BASE_URLS:
            return {**values, "base_url": DEFAULT_BASE_URLS[values["dialect"]]}
        return values

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        """The key itself is a common slip. Some are made of what names are made of (gsk_…, hf_…), but are long."""
        if name is not None and not re.fullmatch(r"(?!(?=\w*[a-z])(?=\w*\d)\w{32})[A-Za-z_]\w*", name, re.ASCII):
            raise ValueError(
                "must be the name of the variable that holds the key, as OPENAI_API_KEY, not the key itself"
            )
        return name

    @field_validator("proxy")
    @classmethod
    def _is_a_proxy(cls, url: str | None) -> str | None:
        """The HTTP client takes socks5:// too, and then speaks HTTP to it. The address may hold a password."""
        try:
            parts = urlsplit(url or "")
            usable = url is None or (parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0)
        except ValueError:  # a port that is none, a bracket that is not closed
            usable = False
        if not usable or (url is not None and any(char.isspace() for char in url)):
            raise ValueError(
                "must be http:// or https:// with a host, as http://proxy.example:3128; SOCKS is not known"
            )
        return url

    @model_validator(mode="after")
    def _address_is_plain(self) -> Upstream:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            told = "" if "@" in self.base_url else f", not {shown(self.base_url)!r}"
            raise ValueError(f"base_url must be http:// or https:// with a host{told}")
        if parts.username or parts.password:
            raise ValueError("base_url must not hold a user or a password; use api_key_env or api_key_file")
        if self.api_key_env and self.api_key_file:
            raise ValueError("api_key_env and api_key_file exclude each other")
        return self

    def api_key(self) -> str | None:
        """The key, read now; None where none is configured. Raises ConfigError where it is configured and missing."""
        if self.api_key_env:
            key = os.environ.get(self.api_key_env, "").strip()
            if not key:
                raise ConfigError(f"api_key_env: the environment variable {self.api_key_env} is not set")
            return key
        return read_secret("api_key_file", self.api_key_file) if self.api_key_file else None

    def serves(self, model: str) -> bool:
        """Whether a pattern of `models` matches."""
        return any(fnmatch.fnmatchcase(model, pattern) for pattern in self.models)


class Settings(BaseModel, extra="forbid", frozen=True, hide_input_in_errors=True):
    """Everything that can be set. `Settings.load()` reads it from the environment and the file."""

    #: The server of the queue, and of the tapes unless `tape_url` names another. redis://, rediss:// or unix://.
    redis_url: ServerAddress = DEFAULT_REDIS_URL
    #: The server of the tapes; unset, that of the queue.
    tape_url: ServerAddress | None = None
    #: File that holds the password for those of the two URLs that hold none; read at the start, white space stripped.
    redis_password_file: File | None = None
    #: Prefixes the keys and the names of the queues; RQ's own records carry no prefix.
    namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "tokentape"
    #: How long a call to Redis is tried again before RedisUnavailable.
    redis_wait_s: Seconds = 5.0

    #: Streams at once in one worker process.
    concurrency: Annotated[Whole, Field(ge=1, le=100_000)] = 256
    #: A worker that has not renewed for this long is dead to the others.
    lease_s: Seconds = 5.0
    #: How often a worker renews; unset, 0.3 of the lease.
    renew_s: Seconds | None = None
    #: How often each worker looks for dead workers, due retries and overdue jobs.
    sweep_s: Seconds = 1.0
    #: How long a stopping worker lets its streams finish.
    grace_s: Annotated[Number, Field(ge=0, le=86_400)] = 30.0
    #: How long an acknowledged job is watched, so that an end that a failover lost is noticed.
    settle_s: Seconds = 10.0
    #: A wait before a retry that is longer than this gives the slot back.
    hold_s: Annotated[Number, Field(ge=0, le=3_600)] = 3.0
    #: The longest wait that an upstream's Retry-After may ask for.
    max_retry_after_s: Seconds = 120.0

    #: How long tape and result live after the end.
    retention_s: Seconds = 86_400.0
    #: How long an unfinished job's tape outlives its deadline, to be ended late; at least as long as `retention_s`.
    expiry_margin_s: Seconds = 86_400.0

    #: Chunks of one job, as JSON; beyond it the job ends `output_too_large`.
    max_output_bytes: Bytes = 16 * 1024 * 1024
    #: Chunks that one worker holds unpublished; beyond it, it stops reading upstream.
    max_unpublished_bytes: Bytes = 64 * 1024 * 1024
    #: What a worker keeps of the newest published chunks of an attempt, to send again.
    resend_bytes: Bytes = 64 * 1024
    #: How long a worker tries to write to a server whose memory is full before it ends the job `storage_full`.
    storage_wait_s: Seconds = 30.0
    #: What one follower buffers; beyond it, it reads from Redis at its own pace.
    reader_buffer_bytes: Bytes = 4 * 1024 * 1024

    #: Where a worker says each second that it lives, for `python -P -m tokentape_worker.health live`; unset, nowhere.
    health_file: File | None = None
    #: What a service logs: this and what is more serious.
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: How a service logs: `auto` is text on a terminal and JSON elsewhere.
    log_format: Literal["auto", "text", "json"] = "auto"

    #: The chat APIs, by name: tables of the file.
    upstreams: dict[str, Upstream] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _intervals_fit(self) -> Settings:
        if self.renewal_s * 2 > self.lease_s:
            raise ValueError(f"renew_s ({self.renewal_s:g}) must be at most half of lease_s ({self.lease_s:g})")
        return self

    @property
    def renewal_s(self) -> float:
        """How often a worker renews its lease, in seconds."""
        return self.renew_s or self.lease_s * 0.3

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read defaults, file and environment, in that order; `overrides` win over all of them.

        Raises ConfigError that names the setting, where it was read, and the nearest right name.
        """
        return load(environ, **overrides).settings

    def route(self, model: str) -> str | None:
        """The upstream for a model that names none: an exact name first, then the patterns in the file's order."""
        for name, upstream in self.upstreams.items():
            if model in upstream.models:
                return name
        return next((name for name, upstream in self.upstreams.items() if upstream.serves(model)), None)


class Source(NamedTuple):
    """Where a value came from. `name`: the variable, the option or argument, or the name inside `file`."""

    kind: Literal["default", "file", "environment", "option", "endpoint"]
    name: str = ""
    file: str | None = None

    def __str__(self) -> str:
        if self.kind == "file":
            return f"{self.name} in {self.file}"
        return self.name or "the default"


class Loaded(NamedTuple):
    """Settings, and where each came from: by name, and `upstreams.NAME.FIELD`. What is not there is the default."""

    settings: Settings
    sources: Mapping[str, Source]
    #: The file that was read.
    file: str | None

    def source(self, name: str) -> Source:
        """Where a setting came from."""
        return self.sources.get(name, _DEFAULT)


_DEFAULT: Final = Source("default")
FROM_ENVIRONMENT: Final = tuple(name for name in Settings.model_fields if name != "upstreams")
#: Settings that may hold a secret: the environment may name a file instead.
_FROM_FILES: Final = ("redis_url_file", "tape_url_file")
_ENVIRONMENT_NAMES: Final = tuple(f"{ENV_PREFIX}{name.upper()}" for name in (*FROM_ENVIRONMENT, *_FROM_FILES, "config"))
_KNOWN: Final = {"settings": tuple(Settings.model_fields), "upstream": tuple(Upstream.model_fields)}


def load(environ: Mapping[str, str] | None = None, **overrides: Any) -> Loaded:
    """As Settings.load(), which says what is raised; with it, where each value came from."""
    env = os.environ if environ is None else environ
    file = env.get(f"{ENV_PREFIX}CONFIG") or None
    values = _read_file(file)
    sources = {name: Source("file", name, file) for name in values}
    problems = _read_environment(env, values, sources)
    for name, value in overrides.items():
        if value is not None:
            values[name], sources[name] = value, Source("option", name)
    endpoint = found(environ, values)
    values |= endpoint
    sources |= dict.fromkeys(endpoint, Source("endpoint", "`tokentape up`"))
    if values.get("upstreams") in (None, {}):
        values["upstreams"] = {"default": _upstream_from(env, sources)}
    if (file_of_password := values.get("redis_password_file")) and isinstance(file_of_password, str | Path):
        password = read_secret(str(sources["redis_password_file"]), file_of_password)
        values["redis_url"] = with_password(values.get("redis_url", DEFAULT_REDIS_URL), password)
        values["tape_url"] = with_password(values.get("tape_url"), password)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        where = {name: str(source) for name, source in sources.items()}
        where.setdefault("upstreams", "OPENAI_BASE_URL")
        problems += explain(error, lambda name: where.get(name, name), _KNOWN)
    if problems:
        raise ConfigError(problems[0], problems=problems)
    if "upstreams" in sources:
        for upstream, table in settings.upstreams.items():
            for name in (f"upstreams.{upstream}.{field}" for field in table.model_fields_set):
                sources[name] = sources["upstreams"]._replace(name=name)
    return Loaded(settings, sources, file)


def _read_environment(env: Mapping[str, str], values: dict[str, Any], sources: dict[str, Source]) -> list[str]:
    """Add what the environment sets. -> what is wrong with its names"""
    problems = []
    for variable, value in env.items():
        if not variable.startswith(ENV_PREFIX) or variable == f"{ENV_PREFIX}CONFIG":
            continue
        if variable.startswith(f"{ENV_PREFIX}TEST_"):  # left to test suites
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name in _FROM_FILES:
            direct = variable.removesuffix("_FILE")
            if direct in env:
                problems.append(f"{variable} and {direct} exclude each other")
            else:
                setting = name.removesuffix("_file")
                values[setting], sources[setting] = read_secret(variable, value), Source("environment", variable)
        elif name == "upstreams":
            problems.append(f"{variable}: upstreams stand in the file that {ENV_PREFIX}CONFIG names")
        elif name not in FROM_ENVIRONMENT:
            problems.append(f"{variable}: no such setting{nearest(variable, _ENVIRONMENT_NAMES)}")
        else:
            values[name], sources[name] = value, Source("environment", variable)
    return problems


def _upstream_from(env: Mapping[str, str], sources: dict[str, Source]) -> dict[str, Any]:
    """The one upstream that stands where no file names any."""
    upstream: dict[str, Any] = {}
    for variable, field in (("OPENAI_BASE_URL", "base_url"), ("OPENAI_API_KEY", "api_key_env")):
        if env.get(variable):
            upstream[field] = env[variable] if field == "base_url" else variable
            sources[f"upstreams.default.{field}"] = Source("environment", variable)
    if "api_key_env" not in upstream and env.get("OPENAI_API_KEY_FILE"):
        upstream["api_key_file"] = env["OPENAI_API_KEY_FILE"]
        sources["upstreams.default.api_key_file"] = Source("environment", "OPENAI_API_KEY_FILE")
    return upstream


def _read_file(path: str | None) -> dict[str, Any]:
    if not path:
        return {}
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{ENV_PREFIX}CONFIG: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # TOMLDecodeError, and bytes that are not UTF-8
        raise ConfigError(f"{path}: not TOML: {error}") from error
