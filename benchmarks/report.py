"""Reports as tables: what was measured, its spread, what the rivals need, and whether the targets are met."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_NO_TARGET = ("", "", "")


def as_text(reports: Iterable[dict[str, Any]]) -> str:
    """Everything, for a terminal."""
    lines: list[str] = []
    for report in reports:
        lines += [f"{report['id']}  {report['question']}", ""]
        lines += _aligned(["", "who", "median", "lowest", "highest", "ours / it"], _figures(report))
        lines += _aligned(["target", "", "reached", "lowest", "highest", ""], _targets(report))
        for curve in report["curves"]:
            head = [f"{curve['name']} ({curve['x_unit']})", *(number(point["x"]) for point in curve["points"])]
            lines += _aligned(head, [[curve["y_unit"], *(number(point["median"]) for point in curve["points"])]])
        lines += [f"  {who}: {why}" for who, why in report["left_out"].items()]
    return "\n".join(lines) + "\n"


def summary(reports: Sequence[dict[str, Any]]) -> str:
    """One line for each target, for a terminal."""
    rows = [[report["id"], *row] for report in reports for row in _targets(report)]
    return "\n".join(_aligned(["", "", "target", "reached", "lowest", "highest", ""], rows)) + "\n"


def as_markdown(results: dict[str, Any]) -> str:
    """The figures for a README: the targets, every figure, the curves, and what they were measured on."""
    reports = results["benchmarks"]
    machine, versions = results["machine"], results["versions"]
    lines = [
        f"`{results['command']}` on {results['at'][:10]}: {machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_gb']:g} GB, {machine['system']}, load {machine['load_before']:g} before; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". Medians of {min(report['runs'] for report in reports)} runs, with the lowest and the highest.",
        "",
    ]
    lines += _table(
        ["", "what", "target", "reached", "lowest", "highest", ""],
        [[report["id"], *row] for report in reports for row in _targets(report)],
    )
    lines += ["### What lost", "", *(f"- {line}" for line in losses(reports)), "", "### All figures", ""]
    lines += _table(
        ["", "what", "who", "median", "lowest", "highest", "ours / it"],
        [[report["id"], *row] for report in reports for row in _figures(report)],
    )
    for report in reports:
        for curve in report["curves"]:
            head = [f"{curve['name']}, {curve['y_unit']}", *(number(point["x"]) for point in curve["points"])]
            lines += _table(head, [["", *(number(point["median"]) for point in curve["points"])]])
        lines += [f"Left out: {who} ({why}).\n" for who, why in report["left_out"].items()]
    return "\n".join(lines).rstrip("\n") + "\n"


def losses(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Every target that was not met or not measured, and every figure in which somebody else is better."""
    lines = [
        f"{report['id']}, {target['what']}: the target {said(target)} was {met(target)}."
        for report in reports
        for target in report["targets"]
        if not target["met"]
    ]
    for report in reports:
        for figure in report["figures"]:
            share = figure["ours_over_it"]
            # More a second is better, and of everything else less.
            if share is not None and (share < 1 if figure["unit"] == "/s" else share > 1):
                lines.append(
                    f"{report['id']}, {figure['what']}: ours is {number(share)} times that of {figure['who']}."
                )
    return lines or ["Nothing: every target was met, and nobody was better at anything."]


def _figures(report: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"{figure['what']}, {figure['unit']}",
            figure["who"],
            *_spread(figure),
            "" if figure["ours_over_it"] is None else number(figure["ours_over_it"]),
        ]
        for figure in report["figures"]
    ]


def _targets(report: dict[str, Any]) -> list[list[str]]:
    return [
        [target["what"], said(target), *(_NO_TARGET if target["met"] is None else _spread(target)), met(target)]
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
    """Three digits, and all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _spread(facts: dict[str, Any]) -> tuple[str, ...]:
    return tuple(number(facts[name]) for name in ("median", "lowest", "highest"))


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return [*(f"  {line}".rstrip() for line in lines), ""]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]
