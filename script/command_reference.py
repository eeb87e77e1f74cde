"""Writes what the commands say about themselves, for the page docs/reference/command-line.md. Called by script/docs.

python script/command_reference.py build/docs/commands.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from tokentape.cli import tokentape


def commands(group: click.Group, path: str, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """(name, help) of every command below a group, in the order in which its help lists them."""
    ctx = click.Context(
        group, info_name=path.rsplit(maxsplit=1)[-1], parent=parent, max_content_width=100, terminal_width=100
    )
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}", ctx)
        elif command is not None:
            its = click.Context(command, info_name=name, parent=ctx, max_content_width=100, terminal_width=100)
            yield f"{path} {name}", command.get_help(its)


def main() -> None:
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    pages = [f"## {name}\n\n```text\n{text}\n```\n" for name, text in commands(tokentape, "tokentape")]
    target.write_text("\n".join(pages))


if __name__ == "__main__":
    main()
