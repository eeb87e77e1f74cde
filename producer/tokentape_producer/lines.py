"""One line of a batch's input: what it may look like, and what is wrong with it where it may not.

Two forms, which may stand in one file:

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {…}}     OpenAI's batch format
    {"model": "…", "messages": […], …}                                                   a plain chat body

A line that has any of the first form's four fields is held to that form. A plain body gets the custom_id
`line-000001`, by its line number: lines are counted from 1, blank ones (which are skipped) included.

No I/O here: `input_file.py` reads the lines.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Literal

from tokentape.errors import InvalidRequest, TokentapeError
from tokentape.job import MAX_REQUEST_BYTES, ChatJob

ENDPOINT: Final = "/v1/chat/completions"
#: What surrounds a body that is as large as it may be.
MAX_LINE_BYTES: Final = MAX_REQUEST_BYTES + 64 * 1024
MAX_CUSTOM_ID_CHARS: Final = 512

_FORMAT_FIELDS: Final = ("custom_id", "method", "url", "body")

#: Named as OpenAI's batches name them, where they do.
Code = Literal[
    "invalid_json_line", "invalid_request", "missing_field", "url_mismatch", "duplicate_custom_id", "empty_file"
]


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch. `number` counts from 1."""

    number: int
    custom_id: str
    request: dict[str, Any]


class BadLine(TokentapeError, ValueError):
    """A line that cannot become a job. `field` is dotted (`body.messages.0.role`), None where it is the whole line."""

    def __init__(self, number: int, message: str, *, field: str | None = None, code: Code = "invalid_request") -> None:
        super().__init__(f"line {number}: {field}: {message}" if field else f"line {number}: {message}")
        self.number = number
        self.message = message
        self.field = field
        self.code: Code = code


def parse_line(data: bytes, number: int, *, model: str | None = None) -> Line:
    """Read and check one line that is not blank. `model` is for bodies that name none. Raises BadLine."""
    if len(data) > MAX_LINE_BYTES:
        raise BadLine(number, f"longer than {MAX_LINE_BYTES} bytes")
    value = _object(data, number)
    if any(field in value for field in _FORMAT_FIELDS):
        custom_id, body, inside = _custom_id(value, number), _body(value, number), "body."
    else:
        custom_id, body, inside = f"line-{number:06d}", value, ""
    if model is not None and "model" not in body:
        body = {**body, "model": model}
    try:
        ChatJob.create(body)
    except InvalidRequest as error:
        field = None if error.field in (None, "request") else f"{inside}{error.field}"
        message = str(error).removeprefix(f"{error.field}: ")
        raise BadLine(number, message, field=field or inside.rstrip(".") or None) from error
    return Line(number, custom_id, body)


def _object(data: bytes, number: int) -> dict[str, Any]:
    try:
        value = json.loads(data.rstrip())
    except json.JSONDecodeError as error:
        raise BadLine(number, f"not JSON: {error.msg} (column {error.colno})", code="invalid_json_line") from error
    except (ValueError, RecursionError) as error:
        raise BadLine(number, f"not JSON: {error}", code="invalid_json_line") from error
    if not isinstance(value, dict):
        raise BadLine(number, f"must be a JSON object, not {type(value).__name__}", code="invalid_json_line")
    return value


def _custom_id(value: dict[str, Any], number: int) -> str:
    custom_id = value.get("custom_id")
    if custom_id is None:
        raise BadLine(number, "missing", field="custom_id", code="missing_field")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        raise BadLine(number, f"must be a text of 1 to {MAX_CUSTOM_ID_CHARS} characters", field="custom_id")
    try:
        custom_id.encode()
    except UnicodeEncodeError as error:
        raise BadLine(number, "holds half of a surrogate pair", field="custom_id") from error
    return custom_id


def _body(value: dict[str, Any], number: int) -> dict[str, Any]:
    for field, wanted in (("method", "POST"), ("url", ENDPOINT)):
        given = value.get(field)
        if given is None:
            raise BadLine(number, f"missing; it must be {wanted!r}", field=field, code="missing_field")
        if given != wanted:
            raise BadLine(number, f"must be {wanted!r}, not {_shown(given)}", field=field, code="url_mismatch")
    body = value.get("body")
    if body is None:
        raise BadLine(number, "missing: the chat request stands here", field="body", code="missing_field")
    if not isinstance(body, dict):
        raise BadLine(number, f"must be an object, not {type(body).__name__}", field="body")
    return body


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
