"""`tokentape completion`: the shell completes commands and options; click has the scripts."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from .errors import ConfigError

_SHELLS: Final = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete these commands.

    \b
    Examples:
      source <(tokentape completion bash)              this shell; put the line into ~/.bashrc for all
      tokentape completion zsh >"${fpath[1]}/_tokentape"
      tokentape completion fish >~/.config/fish/completions/tokentape.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise ConfigError(f"this click cannot complete for {shell}")
    root = ctx.find_root()
    try:
        click.echo(kind(root.command, {}, "tokentape", "_TOKENTAPE_COMPLETE").source())
    except RuntimeError as error:  # a bash that is too old, or none
        raise ConfigError(str(error)) from error
