"""Text that is shown again and again: in place on a terminal, one below the other elsewhere."""

from __future__ import annotations

import os
import shutil
import unicodedata
from typing import TextIO


class Live:
    """Shows the newest of many texts. On a terminal it replaces the one before; what does not fit is cut."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._in_place = out.isatty() and os.environ.get("TERM") != "dumb"
        self._lines = 0

    def show(self, text: str) -> None:
        """Raises BrokenPipeError where nobody reads any more."""
        if self._in_place:
            size = shutil.get_terminal_size()
            # One line stays free for the cursor; a line that wraps would be two, and the way up too short.
            lines = [_cut(line, size.columns - 1) for line in text.splitlines()][: size.lines - 1]
            up = f"\x1b[{self._lines}F" if self._lines else ""
            self._out.write(up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
            self._lines = len(lines)
        else:
            self._out.write(f"{text}\n\n" if "\n" in text else f"{text}\n")
        self._out.flush()


def _cut(line: str, cells: int) -> str:
    """What of a line fits into so many cells of a terminal: a wide character takes two, a combining one none."""
    taken = 0
    for index, char in enumerate(line):
        taken += 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if taken > cells:
            return line[:index]
    return line
