"""Writes docs/settings.md from tokentape/settings.py: each setting with its unit, default, and name.

What stands in `#:` above a field is its meaning here. Called by script/docs-settings.

python script/settings_page.py docs/settings.md
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from tokentape.settings import ENV_PREFIX, Settings, Upstream

HEAD: Final = """# Settings

<!-- Written by script/docs-settings from tokentape/settings.py. -->

Read once, when a process starts: the defaults, then the file that `TOKENTAPE_CONFIG` names (TOML), then the
environment. In the file each setting has its plain name; in the environment `TOKENTAPE_` and the name in capitals. A
wrong name or value is refused, with the nearest right one. Durations end in `_s` and are seconds, sizes end in
`_bytes`.

`TOKENTAPE_REDIS_URL_FILE` and `TOKENTAPE_TAPE_URL_FILE` name files that hold the address, where it has a password.
"""
NAMESPACES: Final = """
## Several environments

A namespace keeps tapes, queues and limits apart. RQ's own records (`rq:job:…`, `rq:results:…`, `rq:worker:…`) carry
no prefix, and the id of a job with an idempotency key is derived from tenant and key alone. Two namespaces in one
database that submit the same key share RQ's records of it: both jobs run, each on its own tape, but RQ's tools show
one of them, the one that was written last, and list the workers of both. Where that matters, give each environment a
server or a database number of its own (`redis://…/1`), or other tenants.
"""
UPSTREAMS: Final = """
## Upstreams

Tables `[upstreams.NAME]` of the file. Workers alone need them. Without any there is one, `default`, which
`OPENAI_BASE_URL` and `OPENAI_API_KEY` (or `OPENAI_API_KEY_FILE`) describe.
"""
_KINDS: Final = {
    "array": "list of text",
    "boolean": "`true`, `false`",
    "integer": "number",
    "number": "number",
    "object": "table",
    "string": "text",
}
_FIELD: Final = re.compile(r"^    #: (?P<text>.*)\n(?:    #: .*\n)*    (?P<name>\w+):", re.MULTILINE)


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """What the source says above each field."""
    return {found["name"]: found["text"] for found in _FIELD.finditer(inspect.getsource(model))}


def unit(name: str, schema: dict[str, Any]) -> str:
    """What a value is: a unit by the name's end, or the kind of value."""
    for end, text in (("_s", "seconds"), ("_bytes", "bytes")):
        if name.endswith(end):
            return text
    kind = next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema)
    if "enum" in kind:
        return ", ".join(f"`{choice}`" for choice in kind["enum"])
    return "file" if kind.get("format") == "path" else _KINDS[kind["type"]]


def default(value: Any) -> str:
    """A default as it would be written."""
    if value is None or value in ((), {}):
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{one}`" for one in value)
    if isinstance(value, float):
        return f"`{value:.10g}`"
    return f"`{value}`"


def rows(model: type[BaseModel], *, environment: bool) -> list[str]:
    """A table of a model's fields."""
    told = meanings(model)
    lines = ["| setting | environment | value | default | meaning |", "|---|---|---|---|---|"]
    if not environment:
        lines = ["| setting | value | default | meaning |", "|---|---|---|---|"]
    schemas = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        if name == "upstreams":
            continue
        value = field.get_default(call_default_factory=True)
        cells = [f"`{name}`", unit(name, schemas[name]), default(value), told[name].replace("|", "\\|")]
        if environment:
            cells.insert(1, f"`{ENV_PREFIX}{name.upper()}`")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def page() -> str:
    """The whole page."""
    main = "\n".join(rows(Settings, environment=True))
    tables = "\n".join(rows(Upstream, environment=False))
    return f"{HEAD}\n{main}\n{NAMESPACES}{UPSTREAMS}\n{tables}\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
