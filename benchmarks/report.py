"""Reports as a table: what was measured, its spread, what the rivals need, and whether the targets are met."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def as_text(reports: Iterable[dict[str, Any]]) -> str:
    """A table for a terminal."""
    lines: list[str] = []
    for report in reports:
        lines += [f"{report['id']}  {report['question']}", ""]
        lines += _aligned(["", "who", "median", "lowest", "highest"], _figures(report))
        lines += _aligned(["target", "", "reached", "lowest", "highest", ""], _targets(report))
        for curve in report["curves"]:
            head = [curve["name"], *(number(point["x"]) for point in curve["points"])]
            lines += _aligned(head, [[curve["y_unit"], *(number(point["median"]) for point in curve["points"])]])
        lines += [f"  {who}: {why}" for who, why in report["left_out"].items()] + [""]
    return "\n".join(lines)


def _figures(report: dict[str, Any]) -> list[list[str]]:
    return [[f"{figure['what']}, {figure['unit']}", figure["who"], *_spread(figure)] for figure in report["figures"]]


def _targets(report: dict[str, Any]) -> list[list[str]]:
    return [
        [target["what"], said(target), *(_spread(target) if target["met"] is not None else ["", "", ""]), met(target)]
        for target in report["targets"]
    ]


def said(target: dict[str, Any]) -> str:
    """A target in words."""
    sign = "≤" if target["at"] == "most" else "≥"
    if target["how"] == "ratio":
        return f"{sign} {number(target['limit'])} times {target['against']}"
    above = f" above {target['against']}" if target["how"] == "above" else ""
    return f"{sign} {number(target['limit'])} {target['unit']}{above}"


def met(target: dict[str, Any]) -> str:
    return {True: "met", False: "not met", None: "not measured"}[target["met"]]


def number(value: float) -> str:
    """Three digits, and never more than the number has before its point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _spread(facts: dict[str, Any]) -> list[str]:
    return [number(facts[name]) for name in ("median", "lowest", "highest")]


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    ] + [""]
