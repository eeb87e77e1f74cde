"""What a line of the input may look like."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokentape_producer.lines import MAX_LINE_BYTES, BadLine, parse_line

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
LINE: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY}


def test_line_in_batch_format_gives_its_custom_id_and_its_body() -> None:
    line = parse_line(json.dumps(LINE).encode(), 7)

    assert (line.number, line.custom_id, line.request) == (7, "a", BODY)


def test_plain_body_is_named_after_its_line() -> None:
    line = parse_line(json.dumps(BODY).encode(), 7)

    assert (line.custom_id, line.request) == ("line-000007", BODY)


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "batch format"])
def test_given_model_is_for_bodies_that_name_none(plain: bool) -> None:
    without = {"messages": BODY["messages"]}

    line = parse_line(json.dumps(without if plain else {**LINE, "body": without}).encode(), 1, model="other")
    with_its_own = parse_line(json.dumps(BODY).encode(), 1, model="other")

    assert line.request == {"messages": BODY["messages"], "model": "other"}
    assert with_its_own.request["model"] == "m"


@pytest.mark.parametrize(
    ("line", "field", "code"),
    [
        ("{", None, "invalid_json_line"),
        ("[1]", None, "invalid_json_line"),
        ('"text"', None, "invalid_json_line"),
        ("[" * 100_000, None, "invalid_json_line"),
        ({"messages": BODY["messages"]}, "model", "invalid_request"),
        ({"model": "m"}, "messages", "invalid_request"),
        ({"model": "m", "messages": []}, "messages", "invalid_request"),
        ({**LINE, "body": {"model": "m", "messages": [{"content": "x"}]}}, "body.messages.0", "invalid_request"),
        ({**LINE, "body": {**BODY, "model": ""}}, "body.model", "invalid_request"),
        ('{"model": "m", "messages": [{"role": "user", "content": "x"}], "seed": NaN}', None, "invalid_request"),
        ({**LINE, "body": [1]}, "body", "invalid_request"),
        ({**LINE, "body": None}, "body", "missing_field"),
        ({**LINE, "custom_id": None}, "custom_id", "missing_field"),
        ({**LINE, "custom_id": 5}, "custom_id", "invalid_request"),
        ({**LINE, "custom_id": ""}, "custom_id", "invalid_request"),
        ({**LINE, "custom_id": "\ud800"}, "custom_id", "invalid_request"),
        ({**LINE, "method": "GET"}, "method", "url_mismatch"),
        ({**LINE, "url": "/v1/embeddings"}, "url", "url_mismatch"),
        ({"custom_id": "a", "body": BODY}, "method", "missing_field"),
        # Not a plain body with an unknown field: the custom_id would be lost.
        ({"custom_id": "a", **BODY}, "method", "missing_field"),
    ],
)
def test_bad_line_names_its_number_and_the_field(line: Any, field: str | None, code: str) -> None:
    data = line if isinstance(line, str) else json.dumps(line)

    with pytest.raises(BadLine) as caught:
        parse_line(data.encode(), 41)

    assert (caught.value.number, caught.value.field, caught.value.code) == (41, field, code)
    assert str(caught.value).startswith(f"line 41: {field}: " if field else "line 41: ")


def test_line_over_the_limit_is_refused_without_being_parsed() -> None:
    with pytest.raises(BadLine, match=str(MAX_LINE_BYTES)):
        parse_line(b"x" * (MAX_LINE_BYTES + 1), 1)
