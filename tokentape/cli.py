"""The `tokentape` command: what commands there are, and what becomes of an error.

Results go to stdout, everything else to stderr. An error is one line that says what to do, or with `--json` one JSON
object: {"error": {"type": "JobNotFound", "message": …, "exit_code": 3, …}}. The exit codes are in exit_codes.py.

The commands of this package need no extra to be listed, and none but `simulate`, `demo` and `up` to be run. Those of
the services are found through the entry points `tokentape.commands`: no arrow points up from the library. Every command
is loaded when it is asked for, so that help and `--version` wait for nothing but click.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, TextIO

import click

from . import __version__, exit_codes
from .errors import ConfigError, ExtraMissing, JobError, RedisUnavailable, TokentapeError
from .exit_codes import OutputFailed
from .finder import Finder, finder
from .printable import printable

#: Where the commands of this package are, by the names that they have there, and what help says of them.
_BUILT_IN: Final = {
    "submit": ("job_commands", "Submit a chat job."),
    "follow": ("job_commands", "Read a job's tape as it grows, to its end."),
    "result": ("job_commands", "Print a job's answer, waiting for it where it is not there yet."),
    "cancel": ("job_commands", "Cancel a job."),
    "status": ("job_commands", "Show a job as its tape tells it, or without JOB the queues and the workers."),
    "config": ("config_commands", "Show the settings."),
    "doctor": ("doctor", "Check settings, Redis, upstreams and workers, and say how to mend what is wrong."),
    "simulate": (
        "local_commands",
        "Run a scripted chat API for tests and demos, whose answers can be known beforehand.",
    ),
    "demo": ("local_commands", "Show everything at work on this machine."),
    "up": ("local_commands", "Run server and workers on this machine, until Ctrl-C."),
    "completion": ("completion_command", "Print what makes a shell complete these commands."),
}


class _Service(NamedTuple):
    """What can be said of a service's command without importing it."""

    extra: str
    help: str


_SERVICES: Final = {
    "worker": _Service("worker", "Run a worker: take jobs, call the upstreams, write the tapes."),
    "batch": _Service("producer", "Run the lines of a file as jobs, each exactly once."),
}


#: How a disk says that it takes no more.
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _PipeClosed(Exception):
    """stdout has no reader any more. Not an OSError, which click would answer with exit code 1: a failed job."""


@contextlib.contextmanager
def _pipe_told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _PipeClosed from error


class Commands(click.Group):
    """The built-in commands, and those that are found through entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return [*_BUILT_IN, *sorted(_found().keys() - _BUILT_IN.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _BUILT_IN:
            command: click.Command = getattr(import_module(f".{_BUILT_IN[cmd_name][0]}", __package__), cmd_name)
            return command
        try:
            return _load(_found()[cmd_name]) if cmd_name in _found() else None
        except TokentapeError:
            if ctx.resilient_parsing:  # a shell asks for completions: of the others, then
                return None
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:  # click looks for near names among commands that are loaded
            near = difflib.get_close_matches(error.command_name, self.list_commands(ctx), cutoff=0.6)
            raise click.NoSuchCommand(error.command_name, possibilities=near, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            if name in _BUILT_IN:
                rows.append((name, _BUILT_IN[name][1]))
            else:
                known = _SERVICES.get(name)
                rows.append((name, known.help if known else f"From {_found()[name].module}."))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with _pipe_told():  # --help and --version print here
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with _pipe_told():
            return super().invoke(ctx)


@functools.cache
def _found() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="tokentape.commands")}


def _load(point: EntryPoint) -> click.Command:
    try:
        command = point.load()
    except ExtraMissing:
        raise
    except (ImportError, AttributeError) as error:
        known = _SERVICES.get(point.name)
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if known and missing and not missing.startswith("tokentape"):
            raise ExtraMissing(f"tokentape {point.name}", known.extra) from error
        hint = f"; install tokentape[{known.extra}] anew" if known else ""
        raise ConfigError(f"the command {point.name!r} cannot be loaded from {point.value}: {error}{hint}") from error
    if not isinstance(command, click.Command):
        raise ConfigError(f"the command {point.name!r} cannot be loaded: {point.value} is not a click command")
    return command


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name="tokentape")
@click.pass_context
def tokentape(ctx: click.Context) -> None:
    """Run chat completions as queued jobs whose every chunk stays readable: live, later, or again.

    Settings come from TOKENTAPE_* in the environment and from the file that TOKENTAPE_CONFIG names. The server is
    TOKENTAPE_REDIS_URL, or where that is not set the one that `tokentape up` runs.

    \b
    Examples:
      tokentape demo                                  everything at work on this machine
      tokentape up                                    server and worker, until Ctrl-C
      tokentape submit "Why is the sky blue?" --follow
      tokentape status
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":  # https://no-color.org: set, and not empty
        ctx.color = False
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(exit_codes.USAGE)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command with the arguments of the process, or with `args`, and exit with its code."""
    given = list(sys.argv[1:] if args is None else args)
    _open_streams()
    _write_any_text()
    sys.exit(_run(given))


def _run(given: list[str]) -> int:
    as_json = "--json" in (given[: given.index("--")] if "--" in given else given)
    # With --json stderr holds JSON alone, and what was ignored stands in the error that comes of it.
    found = Finder(lambda why: None if as_json else click.echo(f"note: {why}", err=True))
    before = finder.set(found)
    try:
        return _invoke(given, as_json, found)
    finally:
        finder.reset(before)


def _invoke(given: list[str], as_json: bool, found: Finder) -> int:
    try:
        code = tokentape.main(given, prog_name="tokentape", standalone_mode=False)
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        code = exit_codes.INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:  # its message is the whole help
        click.echo(error.format_message(), err=True)
        code = exit_codes.USAGE
    except click.ClickException as error:
        code = exit_codes.USAGE if isinstance(error, click.UsageError) else error.exit_code
        _tell(error, code, as_json, found)
    except TokentapeError as error:
        code = exit_codes.exit_code(error)
        _tell(error, code, as_json, found)
    except (_PipeClosed, BrokenPipeError):
        code = exit_codes.PIPE_CLOSED
        _forget(sys.stdout, sys.stderr)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        code = exit_codes.OUTPUT
        _forget(sys.stdout)
        _tell(OutputFailed(f"the output cannot be written: {error.strerror}"), code, as_json, found)
    return code if isinstance(code, int) else 0


def _tell(error: click.ClickException | TokentapeError, code: int, as_json: bool, found: Finder) -> None:
    message = _message(error, found)
    with contextlib.suppress(OSError):  # nobody reads it, or there is no room for it
        if as_json:
            facts = {"type": type(error).__name__, "message": message, "exit_code": code, **_facts(error)}
            if found.ignored:
                facts["note"] = found.ignored
            click.echo(json.dumps({"error": facts}, ensure_ascii=False), err=True)
        else:
            click.echo(f"error: {message}", err=True)


def _message(error: click.ClickException | TokentapeError, found: Finder) -> str:
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "tokentape"
        text = f"{error.format_message().rstrip('.')} ({command} --help says more)"
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, RedisUnavailable):
        text = f"{error} (at {_where_redis_was_looked_for(found)})"
    else:
        text = str(error)
    return printable(" ".join(text.split()))


def _where_redis_was_looked_for(found: Finder) -> str:
    """Which address, without its password, and which setting it came from."""
    from .masking import shown  # noqa: PLC0415 - see above: what help does not need
    from .settings import ENV_PREFIX, load  # noqa: PLC0415

    try:
        loaded = load()
    except ConfigError as error:
        return str(error)
    places = []
    for name, url in (("redis_url", loaded.settings.redis_url), ("tape_url", loaded.settings.tape_url)):
        if url is None:
            continue
        source = loaded.source(name)
        if source.kind == "default":
            places.append(f"{shown(url)}, the default: set {ENV_PREFIX}REDIS_URL, or start tokentape up")
        else:
            places.append(f"{shown(url)} from {found.source if source.kind == 'endpoint' else source}")
    return " and ".join(places)


def _facts(error: Exception) -> dict[str, Any]:
    """What the error knows besides its message."""
    told = ("job_id", "entry_id", "field", "extra", "bad_lines")
    facts = {name: getattr(error, name) for name in told if hasattr(error, name)}
    if isinstance(error, JobError):
        facts |= {"status": error.status, "job_error": error.error.model_dump()}
    return facts


def _open_streams() -> None:
    """A stream that the caller has closed (`>&-`) is None here: it has nothing to read, and takes what is written.

    In this order each gets the descriptor that it should have, and no connection gets it instead.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - for as long as the process lives


def _write_any_text() -> None:
    """A model's text may hold what the terminal's encoding has not, and JSON half a character: never fail on it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        utf8 = None if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=utf8, errors="backslashreplace")


def _forget(*streams: TextIO) -> None:
    """What is still buffered goes nowhere: the interpreter flushes at exit, and fails where that cannot be written."""
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
