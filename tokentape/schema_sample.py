"""A value that fits a JSON schema: what the simulator puts into the arguments of a tool call.

Honoured: type (also a list of them), properties and required, items with minItems and maxItems, enum, const, minimum
and maximum (exclusive ones too), a whole multipleOf, minLength and maxLength, local `$ref`, and of anyOf, oneOf and
allOf the first member. Not honoured: pattern, format, not, conditions. `noise` chooses: the same noise, the same value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, Final

#: Below this, only what is required is filled in, so that a schema that contains itself ends.
_FULL_DEPTH: Final = 3
#: A schema that requires itself has no finite value: it gets null here.
_MAX_DEPTH: Final = 16
#: Values and words in one sample: room for any real function, none for a schema that means harm.
_MAX_PARTS: Final = 10_000

#: How far a missing bound of a number lies from the other.
_SPAN: Final = 100

_Schema = Mapping[str, Any]


def sample(schema: _Schema, noise: bytes, words: Sequence[str]) -> object:
    """A value for a schema of an object; one without `type` is taken for an object. `noise` must not be empty.

    Raises ValueError where the schema is not one, or asks for a value of unreasonable size.
    """
    try:
        return _Sampler(schema, cycle(noise), words).value({"type": "object", **schema}, 0)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"not a JSON schema: {error}") from error


class _Sampler:
    def __init__(self, root: _Schema, noise: Iterator[int], words: Sequence[str]) -> None:
        self._root = root
        self._noise = noise
        self._words = words
        self._left = _MAX_PARTS
        self._leaves: dict[str, Callable[[_Schema], object]] = {
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
            "boolean": self._boolean,
        }

    def value(self, schema: object, depth: int) -> object:
        self._count_part()
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return self._word() if schema is True else None
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][next(self._noise) % len(schema["enum"])]
        stands_for = self._stands_for(schema)
        return self._typed(schema, depth) if stands_for is None else self.value(stands_for, depth + 1)

    def _stands_for(self, schema: _Schema) -> object:
        """The schema that this one points to, or its first alternative; None where it speaks for itself."""
        if "$ref" in schema:
            return self._referred(schema["$ref"])
        unions = (schema.get(name) for name in ("anyOf", "oneOf", "allOf") if "properties" not in schema)
        return next((union[0] for union in unions if union), None)

    def _typed(self, schema: _Schema, depth: int) -> object:
        kind = schema.get("type") or ("object" if "properties" in schema else "string")
        kind = kind[0] if isinstance(kind, list) else kind
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        make = self._leaves.get(kind)
        return make(schema) if make else None

    def _count_part(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"the schema asks for more than {_MAX_PARTS} parts")

    def _referred(self, pointer: str) -> object:
        found: object = self._root
        for part in pointer.removeprefix("#").strip("/").split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            found = found.get(key) if isinstance(found, Mapping) and key else found
        return found

    def _object(self, schema: _Schema, depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = schema.get("required") or ()
        wanted = (name for name in properties if depth < _FULL_DEPTH or name in required)
        return {name: self.value(properties[name], depth + 1) for name in wanted}

    def _array(self, schema: _Schema, depth: int) -> list[Any]:
        least = schema.get("minItems", 0)
        ideal = 1 + next(self._noise) % 2 if depth < _FULL_DEPTH else 0
        count = max(least, min(ideal, schema.get("maxItems", ideal)))
        return [self.value(schema.get("items", True), depth + 1) for _ in range(count)]

    def _string(self, schema: _Schema) -> str:
        text = self._word()
        while len(text) < schema.get("minLength", 0):
            text = f"{text} {self._word()}"
        return text[: schema.get("maxLength")]

    def _integer(self, schema: _Schema) -> int:
        step = max(1, int(schema.get("multipleOf", 1)))
        low, high = _bounds(schema)
        first = math.ceil(low / step) if "exclusiveMinimum" not in schema else math.floor(low / step) + 1
        last = math.floor(high / step) if "exclusiveMaximum" not in schema else math.ceil(high / step) - 1
        return (first + next(self._noise) % max(1, last - first + 1)) * step

    def _number(self, schema: _Schema) -> float:
        if "multipleOf" in schema:
            return self._integer(schema)
        low, high = _bounds(schema)
        # Never the ends, which may be excluded.
        return low + (high - low) * (1 + next(self._noise) % 255) / 256

    def _boolean(self, _schema: _Schema) -> bool:
        return next(self._noise) % 2 == 0

    def _word(self) -> str:
        self._count_part()
        return self._words[next(self._noise) % len(self._words)]


def _bounds(schema: _Schema) -> tuple[float, float]:
    low = schema.get("exclusiveMinimum", schema.get("minimum"))
    high = schema.get("exclusiveMaximum", schema.get("maximum"))
    if low is None:
        return (0, _SPAN) if high is None else (high - _SPAN, high)
    return low, low + _SPAN if high is None else high
