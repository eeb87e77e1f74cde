"""What a failure of an upstream means: one ErrorInfo from an HTTP answer or from an error object inside a stream.

The body decides before the status does: a 429 whose code is `insufficient_quota` will not go away by waiting, and a
gateway that wraps a bad request in a 500 is still wrong about it. So, in this order:

1. a code that says exactly what happened (`_DECISIVE`);
2. the status of the answer, or a numeric code inside a stream, whose own status said 200;
3. the family of the error (`_GENERAL`);
4. unknown: an answer that broke off may be whole the next time.

`x-should-retry` overrides all of it. What upstream said is kept, shortened, with everything that looks like a key taken
out. The clock is an argument: only an HTTP-date in `retry-after` needs it.
"""

from __future__ import annotations

import email.utils
import html
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC
from typing import Any, Final

from tokentape.job import ErrorInfo

MAX_MESSAGE_CHARS: Final = 500
#: Of the body of a failed call no more is read: errors are short, and an HTML page says little after its title.
MAX_ERROR_BODY_BYTES: Final = 64 * 1024
#: What a message is made of; bounds the time that the patterns below take.
_MAX_TEXT: Final = 8 * 1024

_RETRYABLE: Final = frozenset({"upstream_error", "rate_limited", "timeout"})


def _table(**names: str) -> dict[str, str]:
    return {name: type_ for type_, line in names.items() for name in line.split()}


_DECISIVE: Final = _table(
    quota_exceeded="""insufficient_quota credit_balance_exhausted organization_spend_limit_exceeded
        project_spend_limit_exceeded organization_usage_limit_exceeded enforced_spend_limit_reached
        contract_spend_limit_reached billing_hard_limit_reached billing_not_active billing_error insufficient_balance
        insufficient_credits insufficient_user_quota pre_consume_token_quota_failed exceeded_current_quota_error
        arrearage payment_required""",
    rate_limited="""rate_limit_exceeded rate_limit_error rate_limit_reached_error rate_limited slow_down
        ramp_limit_exceeded too_many_requests throttling resource_exhausted""",
    upstream_error="""server_is_overloaded overloaded_error overloaded engine_overloaded_error server_overloaded
        service_unavailable model_overloaded provider_unavailable""",
    timeout="timeout_error request_timeout gateway_timeout deadline_exceeded",
    authentication_error="invalid_api_key incorrect_api_key api_key_invalid invalid_authentication account_deactivated",
    content_filter="""content_filter content_policy_violation responsibleaipolicyviolation data_inspection_failed
        moderation_blocked""",
    invalid_request="""context_length_exceeded model_not_found string_above_max_length unsupported_parameter
        unsupported_value unsupported_model request_too_large""",
)
_GENERAL: Final = _table(
    authentication_error="authentication_error permission_error unauthorized unauthenticated permission_denied",
    invalid_request="""invalid_request_error invalid_request bad_request badrequesterror not_found_error notfounderror
        invalid_argument failed_precondition not_found""",
    timeout="timeout",
    upstream_error="server_error api_error internal_error internal_server_error internal unavailable bad_gateway",
)


def from_response(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float, secrets: Collection[str] = ()
) -> ErrorInfo:
    """Why an answer with a status outside 200-299 is an error.

    `body` may be cut at MAX_ERROR_BODY_BYTES. `now` is Unix time in seconds. `secrets` never appear in the message.
    """
    header = {name.lower(): value.strip() for name, value in headers.items()}
    payload = _json(body)
    error = _error_object(payload)
    type_, retryable = _judge(error, status)
    if header.get("x-should-retry", "").lower() in ("true", "false"):
        retryable = header["x-should-retry"].lower() == "true"
    said = _message(error) if payload is not None else _plain_text(body)
    if status < 400:
        said = "redirects are not followed; does base_url point to the API itself?"
    return ErrorInfo(
        type=type_,
        message=shorten(redact(said, secrets)) or f"HTTP {status} and nothing else",
        retryable=retryable,
        upstream_status=status,
        code=_code(error),
        retry_after_s=_retry_after_s(header, error, now) if retryable else None,
    )


def from_payload(payload: object) -> ErrorInfo:
    """Why an error object inside a stream, or a body of status 200, is one. Unknown errors may be tried again."""
    error = _error_object(payload)
    numeric = [int(name) for name in _names(error) if re.fullmatch(r"[1-5][0-9][0-9]", name)]
    status = next((number for number in numeric if number >= 300), None)
    type_, retryable = _judge(error, status)
    return ErrorInfo(
        type=type_,
        message=shorten(redact(_message(error))) or "an error without a message",
        retryable=retryable,
        upstream_status=status,
        code=_code(error),
        retry_after_s=_retry_delay_s(error) if retryable else None,
    )


def is_error(payload: Mapping[str, Any]) -> bool:
    """Whether a JSON object of a stream says that the call has failed."""
    if payload.get("error") or payload.get("object") == "error" or payload.get("type") == "error":
        return True
    base = payload.get("base_resp")  # MiniMax
    if isinstance(base, dict) and base.get("status_code"):
        return True
    if isinstance(payload.get("choices"), list) or payload.get("usage"):
        return False
    if payload.get("detail") or payload.get("errors"):
        return True
    return bool(payload.get("message") or payload.get("msg")) and any(
        payload.get(name) for name in ("code", "type", "status")
    )


def redact(text: str, secrets: Collection[str] = ()) -> str:
    """The text without the given secrets and without whatever looks like a key."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[redacted]")
    for pattern, replacement in _KEYS:
        text = pattern.sub(replacement, text)
    return text


def shorten(text: str) -> str:
    """The text in one line of at most MAX_MESSAGE_CHARS characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_MESSAGE_CHARS else line[: MAX_MESSAGE_CHARS - 1] + "…"


_KEYS: Final = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=*-]{6,}"), r"\1 [redacted]"),
    (
        re.compile(
            r"(?i)\b((?:api[-_ ]?key(?: provided)?|authorization|password|secret)['\"]?\s*[:=]\s*['\"]?)"
            r"[^\s'\",;&]{4,}"
        ),
        r"\1[redacted]",
    ),
    (re.compile(r"\b(?:sk|pk|rk|gsk|xai|hf|nvapi|r8|fw|pplx|csk|gh[pousr])[-_][\w*.-]{6,}"), "[redacted]"),
    (re.compile(r"\bAIza[\w-]{20,}|\beyJ[\w-]{10,}\.[\w.-]+"), "[redacted]"),
    # Anything long, of letters and digits, that no word and no UUID is.
    (re.compile(r"(?<![\w-])(?=\w*[0-9])(?=\w*[A-Za-z])\w{32,}(?![\w-])", re.ASCII), "[redacted]"),
)


def _judge(error: Mapping[str, Any], status: int | None) -> tuple[str, bool]:
    if any("PerDay" in str(violation) for violation in _details(error, "violations")):
        return "quota_exceeded", False
    names = [name.lower() for name in _names(error)]
    for table in (_DECISIVE, None, _GENERAL):
        if table is None:
            if status is not None:
                return _by_status(status)
            continue
        for name in names:
            if (type_ := table.get(name)) is not None:
                return type_, type_ in _RETRYABLE
    return "upstream_error", True


_BY_STATUS: Final = {
    401: ("authentication_error", False),
    402: ("quota_exceeded", False),
    403: ("authentication_error", False),
    408: ("timeout", True),
    409: ("upstream_error", True),
    429: ("rate_limited", True),
    504: ("timeout", True),
    524: ("timeout", True),  # Cloudflare's
}


def _by_status(status: int) -> tuple[str, bool]:
    if status >= 500:
        return _BY_STATUS.get(status, ("upstream_error", True))
    if status >= 400:
        return _BY_STATUS.get(status, ("invalid_request", False))
    return "upstream_error", False  # a redirect: it would be the same again


def _json(body: bytes) -> object:
    if body.strip()[:1] not in (b"{", b"["):
        return None
    try:
        return json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _error_object(payload: object) -> dict[str, Any]:
    """The object with code, type and message, wherever the upstream put it. Gemini wraps it in a list as well."""
    if isinstance(payload, list):
        payload = next((entry for entry in payload if isinstance(entry, dict)), None)
    if not isinstance(payload, dict):
        return {"message": payload} if isinstance(payload, str) else {}
    for inner in (payload.get("error"), payload.get("base_resp")):
        if isinstance(inner, dict) and inner:
            return inner
    errors = payload.get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        return errors[0]
    if isinstance(payload.get("error"), str):
        return {**payload, "message": payload.get("message") or payload["error"]}
    return payload


def _names(error: Mapping[str, Any]) -> list[str]:
    """Everything in the error that may be a code, the most exact first."""
    details = error.get("details")
    values = [
        details.get("error_code") if isinstance(details, dict) else None,
        *(error.get(name) for name in ("code", "type", "status", "status_code")),
    ]
    for outer in ("metadata", "innererror"):
        inner = error.get(outer)
        if isinstance(inner, dict):
            values += [inner.get("error_type"), inner.get("code")]
    values += _details(error, "reason")  # Google's ErrorInfo: a key that is wrong comes as a 400, INVALID_ARGUMENT
    return [str(value) for value in values if isinstance(value, str | int) and not isinstance(value, bool) and value]


def _code(error: Mapping[str, Any]) -> str | None:
    names = _names(error)
    return redact(names[0])[:100] if names else None


def _message(error: Mapping[str, Any]) -> str:
    for name in ("message", "detail", "msg", "status_msg", "error_description", "errors"):
        value = error.get(name)
        if isinstance(value, str) and value.strip():
            return value[:_MAX_TEXT]
        if isinstance(value, list | dict) and value:
            return json.dumps(value, ensure_ascii=False)[:_MAX_TEXT]
    return ", ".join(_names(error))


def _plain_text(body: bytes) -> str:
    """What a person would read of a body that is not JSON."""
    text = body[:_MAX_TEXT].decode("utf-8", "replace")
    if text.lstrip()[:1] == "<":
        text = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>", " ", text)
        text = html.unescape(re.sub(r"<[^<>]*>", " ", text))
    return text


def _retry_after_s(header: Mapping[str, str], error: Mapping[str, Any], now: float) -> float | None:
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0), ("x-ms-retry-after-ms", 1000.0)):
        value = header.get(name)
        if value is None:
            continue
        seconds = _seconds(value)
        if seconds is not None:
            return seconds / unit
        if name == "retry-after" and (at := _http_date(value)) is not None:
            return max(0.0, at - now)
    return _retry_delay_s(error)


def _retry_delay_s(error: Mapping[str, Any]) -> float | None:
    """Google's RetryInfo: `"retryDelay": "38.92s"`."""
    for delay in _details(error, "retryDelay"):
        if isinstance(delay, str) and delay.endswith("s"):
            return _seconds(delay[:-1])
    return None


def _details(error: Mapping[str, Any], name: str) -> Iterator[object]:
    details = error.get("details")
    for entry in details if isinstance(details, list) else []:
        if isinstance(entry, dict) and name in entry:
            yield entry[name]


def _seconds(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _http_date(text: str) -> float | None:
    try:
        at = email.utils.parsedate_to_datetime(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
