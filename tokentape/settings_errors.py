"""What is wrong with a setting, in one line each: where it was read, what it must be, and the nearest right one.

A value is repeated only where it cannot be a secret: numbers anywhere, texts outside the upstreams, addresses never.
The suggestions are for slips of the hand: another case, a dash for an underscore, `30s` or `16MiB` for a plain number.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

ENV_PREFIX: Final = "TOKENTAPE_"

_ADDRESSES: Final = ("redis_url", "tape_url")
_KIB: Final = 1024
_FACTORS: Final[Mapping[str, Mapping[str, float]]] = {
    "seconds": {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400},
    "bytes": {"b": 1, "k": _KIB, "kb": _KIB, "kib": _KIB, "m": _KIB**2, "mb": _KIB**2, "mib": _KIB**2, "g": _KIB**3,
              "gb": _KIB**3, "gib": _KIB**3},
}  # fmt: skip
_WHOLE: Final = "must be a whole number{unit}"
_NUMBER: Final = "must be a number{unit}"
_TABLE: Final = "must be a table, as in [upstreams.default]"
#: pydantic's types of errors in the words of the settings; where one is not here, pydantic's own.
_WORDS: Final = {
    "literal_error": "must be one of {choices}",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le:.15g}",
    "int_parsing": _WHOLE,
    "int_type": _WHOLE,
    "int_from_float": _WHOLE,
    "int_parsing_size": _WHOLE,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "finite_number": _NUMBER,
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "path_type": "must be a text",
    "tuple_type": 'must be a list, as in ["gpt-*"]',
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "string_pattern_mismatch": "must be up to 64 letters, digits and . _ -, beginning with a letter or digit",
    "model_type": _TABLE,
    "dict_type": _TABLE,
}
_AMOUNT: Final = re.compile(r"\s*(\d+(?:[._]\d+)*)\s*([a-z]*)\s*")


def unit_of(name: str) -> str | None:
    """`seconds`, `bytes`, or None: by the end of a setting's name."""
    if name.endswith("_s"):
        return "seconds"
    return "bytes" if name.endswith("_bytes") else None


def nearest(name: str, known: Collection[str]) -> str:
    """`; did you mean NAME?`, or nothing where none is near."""
    plain = {_plain(one): one for one in known}
    match = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.6)
    return f"; did you mean {plain[match[0]]}?" if match else ""


def explain(error: ValidationError, where: Callable[[str], str], known: Mapping[str, Collection[str]]) -> list[str]:
    """Everything that is wrong, a line each.

    `where` tells where a setting was read; `known` are the right names, of "settings" and of an "upstream".
    """
    return [_line(one, where, known) for one in error.errors(include_url=False)]


def _line(error: ErrorDetails, where: Callable[[str], str], known: Mapping[str, Collection[str]]) -> str:
    loc = tuple(str(part) for part in error["loc"])
    if not loc:
        return _message(error, "")
    inside = ".".join(loc[1:])
    at = f"{where(loc[0])}{f' ({inside})' if inside else ''}"
    if error["type"] == "extra_forbidden":
        return f"{at}: no such setting{nearest(loc[-1], known['upstream' if inside else 'settings'])}"
    value = error["input"]
    told = isinstance(value, int | float) or (isinstance(value, str) and not inside and loc[0] not in _ADDRESSES)
    shown = f", not {value!r}" if told and error["type"] != "value_error" else ""
    return f"{at}: {_message(error, loc[-1])}{shown}{_suggestion(error, loc[-1])}"


def _message(error: ErrorDetails, name: str) -> str:
    words = _WORDS.get(error["type"])
    if words is None:
        return error["msg"].removeprefix("Value error, ")
    unit = f" of {unit_of(name)}" if unit_of(name) else ""
    return words.format(**{**error.get("ctx", {}), "unit": unit, "choices": ", ".join(_choices(error))})


def _suggestion(error: ErrorDetails, name: str) -> str:
    value = error["input"]
    if not isinstance(value, str):
        return ""
    if error["type"] == "literal_error":
        return nearest(value, _choices(error))
    if error["type"] == "string_pattern_mismatch":
        tame = re.sub(r"[^A-Za-z0-9_.-]+", "-", value).strip("._-")[:64]
        return f"; did you mean {tame}?" if tame else ""
    if error["type"] in ("int_parsing", "float_parsing") and (amount := _amount(value, unit_of(name))) is not None:
        return f"; did you mean {amount:.15g}?"
    return ""


def _amount(text: str, unit: str | None) -> float | None:
    """`1.5h` of seconds is 5400, `16MiB` of bytes 16777216; without a unit, the number that it begins with."""
    found = _AMOUNT.fullmatch(text.lower())
    if found is None:
        return None
    number, suffix = found.groups()
    factor = 1 if not suffix else _FACTORS.get(unit or "", {}).get(suffix)
    try:
        return None if factor is None else float(number.replace("_", "")) * factor
    except ValueError:  # more than one point
        return None


def _choices(error: ErrorDetails) -> list[str]:
    return re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", "")))


def _plain(name: Any) -> str:
    """What two names are compared by."""
    return str(name).lower().replace("-", "_").removeprefix(ENV_PREFIX.lower())
