"""`tokentape config`: what is in force, and where each value came from.

What may be a secret is never shown: passwords in addresses, and the values of headers and queries that an upstream adds
to its calls. Keys of upstreams are no settings; what names them is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import click

from .masking import MASK, shown
from .settings import Loaded, load

_ADDRESSES: Final = frozenset({"redis_url", "tape_url", "base_url", "proxy"})
_HIDDEN: Final = frozenset({"headers", "query"})


@click.group()
def config() -> None:
    """Show the settings."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="An object of all of them. Errors are JSON on stderr.")
def show(as_json: bool) -> None:
    """Show what is in force, and where each value came from. Secrets are masked.

    A worker may have another environment, and so other settings than this command.

    \b
    Examples:
      tokentape config show
      TOKENTAPE_CONFIG=tokentape.toml tokentape config show --json | jq .upstreams
    """
    loaded = load()
    click.echo(json.dumps(facts(loaded), ensure_ascii=False) if as_json else table(loaded))


def facts(loaded: Loaded) -> dict[str, Any]:
    """{"file": …, "settings": {NAME: {"value": …, "source": …}}, "upstreams": {UPSTREAM: {NAME: …}}}"""
    settings: dict[str, Any] = {}
    upstreams: dict[str, Any] = {}
    for name, value, source in rows(loaded):
        upstream, _, field = name.removeprefix("upstreams.").rpartition(".")
        place = upstreams.setdefault(upstream, {}) if name.startswith("upstreams.") else settings
        place[field or name] = {"value": value, "source": source}
    return {"file": loaded.file, "settings": settings, "upstreams": upstreams}


def table(loaded: Loaded) -> str:
    """A line for each setting: name, value, source."""
    lines = [(name, _text(value), source) for name, value, source in rows(loaded)]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return "\n".join(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}" for name, value, source in lines)


def rows(loaded: Loaded) -> Iterator[tuple[str, Any, str]]:
    """(name, value that may be shown, source) of each setting; those of upstreams as `upstreams.NAME.FIELD`."""
    values = loaded.settings.model_dump(mode="json")
    upstreams = values.pop("upstreams")
    for name, value in values.items():
        yield name, _shown(name, value), str(loaded.source(name))
    for upstream, fields in upstreams.items():
        for name, value in fields.items():
            full = f"upstreams.{upstream}.{name}"
            yield full, _shown(name, value), str(loaded.source(full))


def _shown(name: str, value: Any) -> Any:
    if name in _ADDRESSES and value is not None:
        return shown(value)
    return dict.fromkeys(value, MASK) if name in _HIDDEN else value


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.10g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
