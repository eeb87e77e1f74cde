from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from tokentape.schema_sample import sample

WORDS = ("one", "two", "three")
NOISES = [bytes([seed, 255 - seed, seed * 7 % 256]) for seed in range(0, 256, 5)]


class Leaf(BaseModel):
    size: int = Field(ge=3, le=5)
    weight: float = Field(gt=0, lt=1)
    step: int = Field(multiple_of=7, ge=10)
    tag: str = Field(min_length=8, max_length=10)


class Branch(BaseModel):
    leaves: list[Leaf] = Field(min_length=3, max_length=3)
    either: int | str
    maybe: Leaf | None
    inner: Branch | None = None
    branches: list[Branch] = []


@pytest.mark.parametrize("noise", NOISES)
def test_a_sample_fits_the_schema_of_a_model(noise: bytes) -> None:
    value = sample(Branch.model_json_schema(), noise, WORDS)

    Branch.model_validate(value, strict=True)


@pytest.mark.parametrize(
    ("schema", "type_"),
    [
        ({"type": "string"}, str),
        ({"type": ["integer", "null"], "exclusiveMinimum": 4, "maximum": 5}, int),
        ({"type": "boolean"}, bool),
        ({"type": "null"}, type(None)),
        ({"type": "array", "items": {"type": "string"}}, list[str]),
        ({"enum": ["a", "b"]}, str),
        ({"const": 7}, int),
        ({}, str),
    ],
)
def test_a_property_has_the_type_of_its_schema(schema: dict[str, Any], type_: type[object]) -> None:
    value = sample({"properties": {"it": schema}}, b"\x07\x03", WORDS)

    assert isinstance(value, dict)
    TypeAdapter(type_).validate_python(value["it"], strict=True)


def test_a_schema_that_requires_itself_ends() -> None:
    schema = {"type": "object", "properties": {"again": {"$ref": "#"}}, "required": ["again"]}

    value = sample(schema, b"\x00", WORDS)

    assert isinstance(value, dict)
    assert list(value) == ["again"]


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": ["a"]},
        {"properties": {"a": {"type": "integer", "minimum": "x"}}},
        {"properties": {"a": {"type": "integer", "minimum": math.inf}}},
        {"properties": {"a": {"anyOf": 3}}},
        {"properties": {"a": {"enum": 3}}},
        {"properties": {"a": {"type": {"b": 1}}}},
        {"properties": {"a": {"type": "array", "minItems": 10**12}}},
        {"properties": {"a": {"type": "string", "minLength": 10**12}}},
    ],
)
def test_what_is_no_schema_or_too_large_is_a_value_error(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="schema"):
        sample(schema, b"\x00", WORDS)


def test_the_same_noise_gives_the_same_value() -> None:
    schema = Branch.model_json_schema()

    assert sample(schema, b"\x05\x06", WORDS) == sample(schema, b"\x05\x06", WORDS)
