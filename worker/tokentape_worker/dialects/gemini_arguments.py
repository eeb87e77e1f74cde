"""A function call's arguments that come in pieces, as Vertex streams them: a JSON path and a value each time.

    {"jsonPath": "$.days[0].n", "numberValue": 3}

A text may come in several pieces: each but the last says `willContinue`. A piece without a value only ends the text.
"""

from __future__ import annotations

import re
from typing import Any, Final

_STEP: Final = re.compile(r"""\.([^.\[\]]+)|\[(\d{1,5})\]|\[(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\]""")
#: Places of lists that one call may leave empty before those it fills: a path is no way to ask for memory.
_MAX_GAPS: Final = 1000
_MAX_STEPS: Final = 64


class PartialArguments:
    """Builds one object. A piece that makes no sense is passed over."""

    def __init__(self) -> None:
        self._value: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {}  # those that are to be continued, by path
        self._gaps = _MAX_GAPS

    def take(self, pieces: object) -> None:
        """The pieces that one response brings."""
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, dict) and isinstance(piece.get("jsonPath"), str):
                self._take(piece["jsonPath"], piece)

    def finish(self) -> dict[str, Any]:
        """The whole object. A text whose last piece did not come is what came of it."""
        for path in list(self._texts):
            self._set(path, "".join(self._texts.pop(path)))
        return self._value

    def _take(self, path: str, piece: dict[str, Any]) -> None:
        text = piece.get("stringValue")
        if isinstance(text, str) or path in self._texts:
            self._take_text(path, text if isinstance(text, str) else "", continues=bool(piece.get("willContinue")))
        elif isinstance(piece.get("boolValue"), bool):
            self._set(path, piece["boolValue"])
        elif isinstance(piece.get("numberValue"), int | float):
            self._set(path, piece["numberValue"])
        elif "nullValue" in piece:
            self._set(path, None)

    def _take_text(self, path: str, text: str, *, continues: bool) -> None:
        """Joined once it is whole. What is there meanwhile keeps its place among the others."""
        texts = self._texts.get(path)
        if texts is None:
            self._set(path, text)
            if continues:
                self._texts[path] = [text]
            return
        texts.append(text)
        if not continues:
            self._set(path, "".join(self._texts.pop(path)))

    def _set(self, path: str, value: Any) -> None:
        steps = _steps(path)
        if steps:
            self._gaps -= _set(self._value, steps, value, self._gaps)


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


def _set(target: Any, steps: list[str | int], value: Any, max_gaps: int) -> int:
    """Put a value in its place. -> how many places of lists this left empty; beyond `max_gaps` nothing is put."""
    gaps = 0
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        if isinstance(step, int):
            missing = step - len(target) if isinstance(target, list) else max_gaps + 1
            gaps += max(0, missing)
            if gaps > max_gaps:
                return gaps - max(0, missing)
            target.extend([None] * (missing + 1))
        elif not isinstance(target, dict):
            return gaps
        if after is None:
            target[step] = value
            return gaps
        wanted: type = list if isinstance(after, int) else dict
        inner = target[step] if isinstance(step, int) else target.get(step)
        if not isinstance(inner, wanted):
            inner = target[step] = wanted()
        target = inner
    return gaps
