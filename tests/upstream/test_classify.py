"""What a failure means, from status, headers and body, and from an error inside a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokentape_worker.classify import MAX_MESSAGE_CHARS, from_payload, from_response, is_error, redact

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


def body(**error: Any) -> bytes:
    return json.dumps({"error": error}).encode()


@pytest.mark.parametrize(
    ("status", "type_", "retryable"),
    [
        (301, "upstream_error", False),
        (400, "invalid_request", False),
        (401, "authentication_error", False),
        (402, "quota_exceeded", False),
        (403, "authentication_error", False),
        (404, "invalid_request", False),
        (408, "timeout", True),
        (409, "upstream_error", True),
        (413, "invalid_request", False),
        (422, "invalid_request", False),
        (429, "rate_limited", True),
        (500, "upstream_error", True),
        (502, "upstream_error", True),
        (503, "upstream_error", True),
        (504, "timeout", True),
        (524, "timeout", True),
        (529, "upstream_error", True),
    ],
)
def test_status_decides_where_the_body_says_nothing(status: int, type_: str, retryable: bool) -> None:
    error = from_response(status, {}, b"", now=NOW)

    assert (error.type, error.retryable, error.upstream_status) == (type_, retryable, status)
    assert error.message


@pytest.mark.parametrize(
    ("status", "error", "type_", "retryable"),
    [
        (429, {"code": "insufficient_quota"}, "quota_exceeded", False),
        (429, {"type": "insufficient_quota", "code": "credit_balance_exhausted"}, "quota_exceeded", False),
        (429, {"code": "project_spend_limit_exceeded"}, "quota_exceeded", False),
        (
            429,
            {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}},
            "quota_exceeded",
            False,
        ),
        (429, {"code": 429, "status": "RESOURCE_EXHAUSTED"}, "rate_limited", True),
        (
            429,
            {"status": "RESOURCE_EXHAUSTED", "details": [{"violations": [{"quotaId": "RequestsPerDay-FreeTier"}]}]},
            "quota_exceeded",
            False,
        ),
        (429, {"type": "tokens", "code": "rate_limit_exceeded"}, "rate_limited", True),
        (400, {"code": "content_filter", "type": None}, "content_filter", False),
        (400, {"code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}, "content_filter", False),
        (500, {"code": "context_length_exceeded"}, "invalid_request", False),
        (503, {"code": "server_is_overloaded"}, "upstream_error", True),
        (401, {"type": "invalid_request_error", "code": "invalid_api_key"}, "authentication_error", False),
        (
            400,
            {"code": 400, "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]},
            "authentication_error",
            False,
        ),
        (500, {"type": "invalid_request_error"}, "upstream_error", True),
    ],
)
def test_code_decides_before_the_status(status: int, error: dict[str, Any], type_: str, retryable: bool) -> None:
    info = from_response(status, {}, body(message="m", **error), now=NOW)

    assert (info.type, info.retryable) == (type_, retryable)


@pytest.mark.parametrize(("header", "retryable"), [("true", True), ("false", False), ("perhaps", False)])
def test_upstream_may_say_itself_whether_to_retry(header: str, retryable: bool) -> None:
    assert from_response(400, {"X-Should-Retry": header}, b"", now=NOW).retryable is retryable


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"Retry-After": "2.5"}, 2.5),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:00:00 GMT"}, 0.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50"}, 30.0),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Tue, 99 Nov 2023"}, None),
        ({}, None),
    ],
)
def test_hint_of_when_to_come_again_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert from_response(429, headers, b"", now=NOW).retry_after_s == seconds


def test_hint_in_the_body_is_read_where_no_header_is() -> None:
    info = from_response(429, {}, body(details=[{"@type": "RetryInfo", "retryDelay": "38.92s"}]), now=NOW)

    assert info.retry_after_s == 38.92


def test_hint_of_a_fatal_error_is_dropped() -> None:
    assert from_response(401, {"retry-after": "5"}, b"", now=NOW).retry_after_s is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"error": {"message": "m"}}', "m"),
        (b'[{"error": {"message": "m"}}]', "m"),
        (b'{"error": "m"}', "m"),
        (b'{"message": "m"}', "m"),
        (b'{"detail": "m"}', "m"),
        (b'{"detail": [{"msg": "m"}]}', '[{"msg": "m"}]'),
        (b'{"errors": [{"message": "m"}]}', "m"),
        (b'{"error": {"code": "odd_code"}}', "odd_code"),
        (b"<html><style>p{}</style><h1>502 Bad&nbsp;Gateway</h1>\n</html>", "502 Bad Gateway"),
        (b"error code:\n 524", "error code: 524"),
        (b"", "HTTP 500 and nothing else"),
        (b"{}", "HTTP 500 and nothing else"),
    ],
)
def test_message_is_what_upstream_said(text: bytes, message: str) -> None:
    assert from_response(500, {}, text, now=NOW).message == message


def test_message_is_shortened() -> None:
    info = from_response(500, {}, body(message="word " * 5000), now=NOW)

    assert len(info.message) == MAX_MESSAGE_CHARS


def test_own_secrets_are_taken_out() -> None:
    info = from_response(401, {}, body(message="wrong key: hunter22!"), now=NOW, secrets=["hunter22!"])

    assert info.message == "wrong key: [redacted]"


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-abc123DEF456ghi789",
        "sk-abcd****************wxyz",
        "gsk_0123456789abcdef",
        "AIzaSyA0123456789abcdefghijklmnopqrstu",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
        "0123456789abcdef0123456789abcdef",
        "Zm9vYmFy0123456789ZmFvYmFy0123456789Zm9vYmFy0123456789",
    ],
)
def test_whatever_looks_like_a_key_is_taken_out(key: str) -> None:
    assert key not in redact(f"Incorrect API key provided: {key}. Find yours at example.com.")
    assert key not in redact(f'{{"Authorization": "Bearer {key}"}}')
    assert key not in redact(f"({key})")


def test_ordinary_text_stays() -> None:
    text = "maximum context length is 8192 tokens, request 3f2b1c4d-0000-4000-8000-123456789abc used key=… basic words"

    assert redact(text) == text


@pytest.mark.parametrize(
    ("payload", "type_", "retryable"),
    [
        ({"error": {"code": 502, "message": "m"}}, "upstream_error", True),
        ({"error": {"code": "400", "message": "m"}}, "invalid_request", False),
        ({"error": {"code": 429, "message": "m"}}, "rate_limited", True),
        ({"error": {"code": 429, "type": "insufficient_quota"}}, "quota_exceeded", False),
        ({"error": {"type": "overloaded_error"}}, "upstream_error", True),
        ({"error": {"type": "timeout_error"}}, "timeout", True),
        ({"error": {"type": "invalid_request_error"}}, "invalid_request", False),
        ({"error": {"type": "server_error"}}, "upstream_error", True),
        ({"error": {"message": "who knows"}}, "upstream_error", True),
        ({"object": "error", "message": "m", "type": "BadRequestError", "code": 400}, "invalid_request", False),
        ({"base_resp": {"status_code": 1002, "status_msg": "m"}}, "upstream_error", True),
    ],
)
def test_error_inside_a_stream_is_judged_by_its_code_then_its_type(
    payload: dict[str, Any], type_: str, retryable: bool
) -> None:
    assert is_error(payload)
    info = from_payload(payload)
    assert (info.type, info.retryable) == (type_, retryable)


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"choices": [], "error": None},
        {"type": "ping"},
        {"usage": {"total_tokens": 1}, "message": "m", "code": 1},
        {"choices": [], "message": "m", "type": "t"},
    ],
)
def test_other_objects_are_no_errors(payload: dict[str, Any]) -> None:
    assert not is_error(payload)
