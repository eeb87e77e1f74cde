"""Text of others, as it may stand on a terminal: an upstream's words must not steer it."""

from __future__ import annotations


def printable(text: str) -> str:
    """On one line, a space in place of each character that does something instead of showing something."""
    return "".join(char if char.isprintable() else " " for char in text)
