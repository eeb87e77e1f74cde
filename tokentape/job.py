"""ChatJob: what a producer enqueues, its id, and the states that it goes through.

States, read off the tape:

    queued ──▶ running ──▶ completed | failed | cancelled | expired
       ▲          │
       └ waiting ◀┘   (a retry later; known to the queue side only)

`cancelled` and `expired` can follow every state but an ended one.

A job never names a host and never carries a key: `upstream` is the name of a route that the operator
of the workers configured.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .errors import InvalidRequest

#: What RQ's job records name as the function to run. Workers run nothing else.
ENTRYPOINT: Final = "tokentape_worker.entrypoint.run_job"

#: The largest request body, as JSON in UTF-8.
MAX_REQUEST_BYTES: Final = 32 * 1024 * 1024
MAX_METADATA_KEYS: Final = 64
MAX_METADATA_BYTES: Final = 16 * 1024
DEFAULT_TIMEOUT_S: Final = 600.0
MAX_TIMEOUT_S: Final = 30 * 86_400.0

Priority = Literal["high", "default", "low"]
PRIORITIES: Final[tuple[Priority, ...]] = ("high", "default", "low")

Status = Literal["queued", "running", "waiting", "completed", "failed", "cancelled", "expired"]
EndStatus = Literal["completed", "failed", "cancelled", "expired"]
ENDED: Final = frozenset({"completed", "failed", "cancelled", "expired"})

_JOB_ID: Final = re.compile(r"job_[0-9a-f]{32}")
_ROUTE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ErrorInfo(BaseModel, frozen=True):
    """Why a job ended without a completion.

    `type`: one word of a small set (`upstream_error`, `rate_limited`, `timeout`, `invalid_request`,
    `output_too_large`, `worker_lost`, `cancelled`, `expired`, …).
    `message`: what upstream or the worker said, shortened, without keys.
    `retryable`: whether the same request may succeed later.
    `upstream_status`: the HTTP status where there was one.
    `code`: a finer word than the type, upstream's own or the worker's, where there is one.
    `retry_after_s`: how long upstream asked to wait, where it did.
    """

    type: str
    message: str
    retryable: bool = False
    upstream_status: int | None = None
    code: str | None = None
    retry_after_s: float | None = None


def _has_a_role(message: object) -> object:
    if not isinstance(message, dict):
        raise ValueError("must be an object with a role and a content")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ValueError("needs a role (system, developer, user, assistant or tool)")
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise ValueError("content must be a text, a list of parts, or null")
    if content is None and role not in ("assistant", "function"):
        raise ValueError(f"a {role} message needs a content")
    return message


class _Request(BaseModel):
    """The part of a chat.completions body that is checked; every other field passes through untouched."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[Annotated[Any, BeforeValidator(_has_a_role)]], Field(min_length=1)]
    stream: bool | None = None
    n: Annotated[int | None, Field(ge=1, le=128)] = None


class JobOptions(TypedDict, total=False):
    """How to run many jobs alike: what ChatJob.create takes but for what tells one job from another."""

    upstream: str | None
    priority: Priority
    timeout_s: float
    metadata: dict[str, str] | None
    tenant: str
    native: bool


class ChatJob(BaseModel, frozen=True):
    """One chat.completions request and how to run it. Frozen: build it with `ChatJob.create`.

    `id`: random, or derived from tenant and idempotency key.
    `request`: the body that is sent.
    `upstream`: the name of one that the workers have; None, by the model.
    `priority`: "high", "default" or "low".
    `timeout_s`: from submit to end, the queue included.
    `metadata`: texts by name, kept with the job and never sent.
    `tenant`: whose job this is.
    `native`: the request is one of the upstream's own API (Anthropic's, Gemini's), and is sent as it is.
    """

    id: str
    request: dict[str, Any]
    upstream: str | None = None
    priority: Priority = "default"
    timeout_s: float = DEFAULT_TIMEOUT_S
    metadata: dict[str, str] = Field(default_factory=dict)
    tenant: str = ""
    native: bool = False

    @classmethod
    def create(
        cls,
        request: Mapping[str, Any],
        *,
        job_id: str | None = None,
        idempotency_key: str | None = None,
        upstream: str | None = None,
        priority: Priority = "default",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        metadata: dict[str, str] | None = None,
        tenant: str = "",
        native: bool = False,
    ) -> ChatJob:
        """Check everything that can be known without a server.

        `timeout_s` is seconds from submit to end, the queue included. With an `idempotency_key` the id is derived
        from tenant and key, so that submitting again is the same job. A `native` request is one of the upstream's own
        API; `model` names the model in it, also for Gemini, whose bodies have none.
        Raises InvalidRequest, naming the field.
        """
        # A typed dict is a Mapping to type checkers. What is no mapping at all is told so by the check.
        body: dict[str, Any] = dict(request) if isinstance(request, Mapping) else request
        _check_request(body, native=native)
        if priority not in PRIORITIES:
            raise InvalidRequest(f"must be one of {', '.join(PRIORITIES)}, not {priority!r}", field="priority")
        if upstream is not None and not _ROUTE.fullmatch(upstream):
            raise InvalidRequest(f"{upstream!r} is not the name of an upstream (never an address)", field="upstream")
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise InvalidRequest(f"must be more than 0 and at most {MAX_TIMEOUT_S:.0f} seconds", field="timeout_s")
        if not isinstance(tenant, str) or len(tenant) > 256:
            raise InvalidRequest("must be a text of at most 256 characters", field="tenant")
        if job_id is not None and not _JOB_ID.fullmatch(job_id):
            raise InvalidRequest(f"{job_id!r} is not a job id (job_ and 32 hex digits)", field="id")
        if idempotency_key is not None and (
            not isinstance(idempotency_key, str) or not 1 <= len(idempotency_key) <= 512
        ):
            raise InvalidRequest("must be a text of 1 to 512 characters", field="idempotency_key")
        return cls(
            id=job_id or (derive_job_id(tenant, idempotency_key) if idempotency_key else new_job_id()),
            request=body,
            upstream=upstream,
            priority=priority,
            timeout_s=float(timeout_s),
            metadata=_checked_metadata(metadata),
            tenant=tenant,
            native=native,
        )

    def body(self) -> bytes:
        """The request as canonical JSON: what is stored, and what `request_sha256` is taken of."""
        return canonical_json(self.request)


def new_job_id() -> str:
    """A random job id."""
    return f"job_{secrets.token_hex(16)}"


def derive_job_id(tenant: str, key: str) -> str:
    """The job id that belongs to a tenant's idempotency key. The lengths keep (a, bc) and (ab, c) apart."""
    digest = hashlib.sha256(f"{len(tenant)}:{tenant}:{key}".encode()).hexdigest()
    return f"job_{digest[:32]}"


def is_job_id(text: str) -> bool:
    """Whether a text has the form of a job id."""
    return _JOB_ID.fullmatch(text) is not None


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, UTF-8. Raises InvalidRequest for what JSON cannot hold."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError (a lone surrogate) is a ValueError
        raise InvalidRequest(f"not JSON: {error}", field="request") from error


def parse_request(data: bytes | str) -> dict[str, Any]:
    """A request body from JSON text. Raises InvalidRequest where it is not a JSON object, or too large."""
    if len(data) > MAX_REQUEST_BYTES:
        raise InvalidRequest(f"{len(data)} bytes; the limit is {MAX_REQUEST_BYTES}", field="request")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"not JSON: {error}", field="request") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"must be a JSON object, not {type(value).__name__}", field="request")
    return value


class _NativeRequest(BaseModel):
    """The part of a body of another API that is checked."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: Annotated[str, Field(min_length=1, max_length=256)]
    stream: bool | None = None


def _check_request(request: dict[str, Any], *, native: bool) -> None:
    if not isinstance(request, dict):
        raise InvalidRequest(f"must be an object, not {type(request).__name__}", field="request")
    try:
        (_NativeRequest if native else _Request).model_validate(request)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "request"
        raise InvalidRequest(first["msg"].removeprefix("Value error, "), field=field) from None
    size = len(canonical_json(request))
    if size > MAX_REQUEST_BYTES:
        raise InvalidRequest(f"{size} bytes; the limit is {MAX_REQUEST_BYTES}", field="request")


def _checked_metadata(metadata: dict[str, str] | None) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(
        isinstance(key, str) and isinstance(value, str) for key, value in metadata.items()
    ):
        raise InvalidRequest("must map texts to texts", field="metadata")
    if len(metadata) > MAX_METADATA_KEYS or len(canonical_json(metadata)) > MAX_METADATA_BYTES:
        raise InvalidRequest(
            f"at most {MAX_METADATA_KEYS} keys and {MAX_METADATA_BYTES} bytes of JSON", field="metadata"
        )
    return metadata
