"""The results as a picture: a panel for each question, ours beside the rivals, and the curves of growth.

A bar is a median, the thin line on it reaches from the lowest run to the highest, the dashed line is the target.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final, TypeAlias

from .harness import OURS
from .report import number

#: matplotlib's. It is there where the rivals are, and so not known to the type checker.
Axes: TypeAlias = Any

COLUMNS: Final = 3
_OURS, _RIVAL, _TARGET = "#1f6f8b", "#c8c8c8", "#c0392b"
#: Where the longest bar is so many times the shortest, lengths are logarithmic.
_LOG_FROM: Final = 30.0


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the picture as PNG."""
    reports = results["benchmarks"]
    questions = [report for report in reports if report["targets"] and not report["curves"]]
    curves = [(report["id"], curve) for report in reports for curve in report["curves"]]
    rows = -(-len(questions) // COLUMNS) + -(-len(curves) // COLUMNS)
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(5.2 * COLUMNS, 2.5 * rows), layout="constrained"
    )
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    flat = list(axes.flat)
    for ax, report in zip(flat, questions, strict=False):
        _bars(ax, report)
    begin = -(-len(questions) // COLUMNS) * COLUMNS
    for ax, (_, curve) in zip(flat[begin:], curves, strict=False):
        _line(ax, curve)
    for ax in (*flat[len(questions) : begin], *flat[begin + len(curves) :]):
        ax.set_axis_off()
    machine = results["machine"]
    figure.suptitle(
        f"tokentape beside its rivals: {machine['cores']} cores of {machine['processor']}, {results['at'][:10]}"
    )
    figure.savefig(path, dpi=110)


def _bars(ax: Axes, report: dict[str, Any]) -> None:
    """What the first target is about, for all who were measured on it."""
    target = report["targets"][0]
    what = target["what"]
    if report["id"] == "W2":  # the target is ours alone; what a stream takes says more beside a rival
        what = "memory a stream"
    figures = [figure for figure in report["figures"] if figure["what"].split(", ")[0] == what.split(", ")[0]]
    figures = [figure for figure in figures if figure["what"].startswith(what)][::-1]
    names = [_name(figure, what) for figure in figures]
    medians = [figure["median"] for figure in figures]
    errors = [
        [figure["median"] - figure["lowest"] for figure in figures],
        [figure["highest"] - figure["median"] for figure in figures],
    ]
    colours = [_OURS if figure["who"] == OURS else _RIVAL for figure in figures]
    bars = ax.barh(names, medians, xerr=errors, color=colours, height=0.6, error_kw={"lw": 0.8})
    ax.bar_label(bars, [number(value) for value in medians], padding=4, fontsize=8)
    if max(medians) > _LOG_FROM * min(medians):
        ax.set_xscale("log")
        ax.set_xlim(min(medians) / 3, max(medians) * 4)
    else:
        ax.set_xlim(0, max([*medians, _limit(target, figures) or 0]) * 1.2)
    if what == target["what"] and (limit := _limit(target, figures)) is not None:
        ax.axvline(limit, color=_TARGET, ls="--", lw=1)
    ax.set_title(f"{report['id']}  {report['question']}", fontsize=8.5, loc="left")
    ax.set_xlabel(f"{what}, {figures[0]['unit']}", fontsize=8)
    ax.tick_params(labelsize=7.5)


def _name(figure: dict[str, Any], what: str) -> str:
    """Who, and what is particular about this figure."""
    particular = figure["what"].removeprefix(what).lstrip(", ")
    name = figure["who"].replace(", ", ",\n")
    return f"{name}\n({particular})" if particular else name


def _limit(target: dict[str, Any], figures: list[dict[str, Any]]) -> float | None:
    """Where the target is on the axis of what it is about."""
    limit = float(target["limit"])
    if target["how"] == "value":
        return limit
    rival = next((figure["median"] for figure in figures if figure["who"] == target["against"]), None)
    if rival is None:
        return None
    return float(rival + limit if target["how"] == "above" else rival * limit)


def _line(ax: Axes, curve: dict[str, Any]) -> None:
    points = curve["points"]
    xs = [point["x"] for point in points]
    ax.fill_between(xs, [p["lowest"] for p in points], [p["highest"] for p in points], color=_OURS, alpha=0.2, lw=0)
    ax.plot(xs, [point["median"] for point in points], color=_OURS, marker="o", ms=4)
    ax.set_xscale("log")
    ax.set_ylim(0, max(point["highest"] for point in points) * 1.15)
    ax.set_title(curve["name"], fontsize=8.5, loc="left")
    ax.set_xlabel(curve["x_unit"], fontsize=8)
    ax.set_ylabel(curve["y_unit"], fontsize=8)
    ax.tick_params(labelsize=7.5)
