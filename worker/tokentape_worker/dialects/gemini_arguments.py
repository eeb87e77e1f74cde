"""A function call's arguments that come in pieces, as Vertex streams them: a JSON path and a value each time.

    {"jsonPath": "$.days[0].n", "numberValue": 3}

A text may come in several pieces: each but the last says `willContinue`.
"""

from __future__ import annotations

import re
from typing import Any, Final

_STEP: Final = re.compile(r"""\.([^.\[\]]+)|\[(\d{1,5})\]|\[(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\]""")
_VALUES: Final = ("stringValue", "numberValue", "boolValue")
#: Places of a list that are filled at most: a path is no way to ask for memory.
_MAX_PLACES: Final = 10_000
_MAX_STEPS: Final = 64


class PartialArguments:
    """Builds one object. A piece that makes no sense is passed over."""

    def __init__(self) -> None:
        self.value: dict[str, Any] = {}
        self._continues: dict[str, list[str]] = {}

    def take(self, pieces: object) -> None:
        """The pieces that one response brings."""
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, dict) and isinstance(piece.get("jsonPath"), str):
                self._take(piece["jsonPath"], piece)

    def _take(self, path: str, piece: dict[str, Any]) -> None:
        value: Any = next((piece[name] for name in _VALUES if name in piece), None)
        if isinstance(value, str):
            texts = self._continues.setdefault(path, [])
            texts.append(value)
            # Joined once it is whole; what is there meanwhile keeps its place among the others.
            value = texts[0] if piece.get("willContinue") else "".join(self._continues.pop(path))
        steps = _steps(path)
        if steps:
            _set(self.value, steps, value)


def _steps(path: str) -> list[str | int]:
    """`$.days[0].n` → days, 0, n. Empty for what is no path to a place inside."""
    if not path.startswith("$"):
        return []
    steps: list[str | int] = []
    at = 1
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None or len(steps) >= _MAX_STEPS:
            return []
        name, place, single, double = match.groups()
        if place is not None:
            steps.append(int(place))
        else:
            steps.append(
                name if name is not None else re.sub(r"\\(.)", r"\1", single if single is not None else double)
            )
        at = match.end()
    return steps


def _set(target: Any, steps: list[str | int], value: Any) -> None:
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        if isinstance(step, int):
            if not isinstance(target, list) or step >= _MAX_PLACES:
                return
            target.extend([None] * (step + 1 - len(target)))
        elif not isinstance(target, dict):
            return
        if after is None:
            target[step] = value
            return
        wanted: type = list if isinstance(after, int) else dict
        inner = target[step] if isinstance(step, int) else target.get(step)
        if not isinstance(inner, wanted):
            inner = target[step] = wanted()
        target = inner
