"""`python -P -m tokentape_producer`: the producer's commands without the `tokentape` command."""

from __future__ import annotations

import click

from .commands import batch


@click.group()
def main() -> None:
    """The producer service."""


main.add_command(batch)

if __name__ == "__main__":
    main(prog_name="tokentape-producer")
