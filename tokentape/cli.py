"""The `tokentape` command: what commands there are, and what becomes of an error.

Results go to stdout, everything else to stderr. An error is one line that says what to do, or with `--json` one JSON
object: {"error": {"type": "JobNotFound", "message": …, "exit_code": 3, …}}.

    exit code   0  fine
                1  the job failed, was cancelled or expired; a demo that was not exact; a tape that cannot be read; an
                    error that doctor found
                2  wrong usage, a request that was refused, a wrong setting, a part that is not installed
                3  no such job
                4  the wait was over before the job
                5  Redis did not answer
              130  interrupted (Ctrl-C)
              141  the reader of stdout has gone (as in `| head`), without a word

The commands of this package need no extra to be listed, and none but `simulate`, `demo` and `up` to be run. Those of
the services are found through the entry points `tokentape.commands`: no arrow points up from the library. Every command
is loaded when it is asked for, so that help and `--version` wait for nothing but click.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, NamedTuple, NoReturn

import click

from . import __version__
from .errors import (
    BadCursor,
    ConfigError,
    ExtraMissing,
    IdempotencyConflict,
    InvalidRequest,
    JobError,
    JobNotFound,
    RedisUnavailable,
    ResultTimeout,
    TokentapeError,
)
from .finder import Finder, finder

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
EXIT_PIPE_CLOSED: Final = 141

_EXIT_CODES: Final[tuple[tuple[type[TokentapeError], int], ...]] = (
    (InvalidRequest, EXIT_USAGE),
    (IdempotencyConflict, EXIT_USAGE),
    (BadCursor, EXIT_USAGE),
    (ConfigError, EXIT_USAGE),
    (ExtraMissing, EXIT_USAGE),
    (JobNotFound, 3),
    (ResultTimeout, 4),
    (RedisUnavailable, 5),
)


_RIGHT_LOGIN: Final = (
    "give the right user and password in the address, or the password by TOKENTAPE_REDIS_PASSWORD_FILE;"
)

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
    "producer": _Service("producer", "Run the producer service: jobs and answers over HTTP."),
    "batch": _Service("producer", "Run the lines of a file as jobs, each exactly once."),
}


class _PipeClosed(Exception):
    """stdout has no reader any more. Not an OSError, which click would answer with exit code 1: a failed job."""


class Commands(click.Group):
    """The built-in commands, and those that are found through entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return [*_BUILT_IN, *sorted(_found().keys() - _BUILT_IN.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        if cmd_name in _BUILT_IN:
            command: click.Command = getattr(import_module(f".{_BUILT_IN[cmd_name][0]}", __package__), cmd_name)
            return command
        return _load(_found()[cmd_name]) if cmd_name in _found() else None

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

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _PipeClosed from error


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
    if os.environ.get("NO_COLOR"):  # https://no-color.org: set, and not empty
        ctx.color = False
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(EXIT_USAGE)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command with the arguments of the process, or with `args`, and exit with its code."""
    given = list(sys.argv[1:] if args is None else args)
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
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        return _tell(error, EXIT_USAGE if isinstance(error, click.UsageError) else error.exit_code, as_json, found)
    except TokentapeError as error:
        return _tell(error, exit_code(error), as_json, found)
    except (_PipeClosed, BrokenPipeError):
        code = EXIT_PIPE_CLOSED
    if code == EXIT_PIPE_CLOSED:
        _forget_output()
    return code if isinstance(code, int) else 0


def exit_code(error: TokentapeError) -> int:
    """The exit code of the command that met this error."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), EXIT_FAILED)


def _tell(error: click.ClickException | TokentapeError, code: int, as_json: bool, found: Finder) -> int:
    message = _message(error, found)
    with contextlib.suppress(BrokenPipeError):
        if as_json:
            facts = {"type": type(error).__name__, "message": message, "exit_code": code, **_facts(error)}
            if found.ignored:
                facts["note"] = found.ignored
            click.echo(json.dumps({"error": facts}, ensure_ascii=False), err=True)
        else:
            click.echo(f"error: {message}", err=True)
    return code


def _message(error: click.ClickException | TokentapeError, found: Finder) -> str:
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "tokentape"
        text = f"{error.format_message().rstrip('.')} ({command} --help says more)"
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, RedisUnavailable):
        ask = _RIGHT_LOGIN if error.login_refused else "is the server running?"
        text = f"{str(error).rstrip('.')}; {ask} looked for it at {_where_redis_was_looked_for(found)}"
    else:
        text = str(error)
    return " ".join(text.split())


def _where_redis_was_looked_for(found: Finder) -> str:
    """Which address, without its password, and which setting it came from."""
    from .masking import shown  # noqa: PLC0415 - see above: what help does not need
    from .settings import DEFAULT_REDIS_URL, ENV_PREFIX, Settings  # noqa: PLC0415

    try:
        settings = Settings.load()
    except ConfigError as error:
        return str(error)
    config = os.environ.get(f"{ENV_PREFIX}CONFIG")
    places = []
    for name, url in (("redis_url", settings.redis_url), ("tape_url", settings.tape_url)):
        variable = f"{ENV_PREFIX}{name.upper()}"
        if url is None:
            continue
        if variable in os.environ:
            places.append(f"{shown(url)} from {variable}")
        elif found.endpoint and url == found.endpoint.redis_url:
            places.append(f"{shown(url)} from {found.source}")
        elif config and url != DEFAULT_REDIS_URL:
            places.append(f"{shown(url)} from {name} in {config}")
        else:
            places.append(f"{shown(url)}, the default: set {variable} if it is elsewhere, or start tokentape up")
    return " and ".join(places)


def _facts(error: Exception) -> dict[str, Any]:
    """What the error knows besides its message."""
    facts = {name: getattr(error, name) for name in ("job_id", "entry_id", "field", "extra") if hasattr(error, name)}
    if isinstance(error, JobError):
        facts |= {"status": error.status, "job_error": error.error.model_dump()}
    return facts


def _write_any_text() -> None:
    """A model's text may hold what the terminal's encoding has not, and JSON half a character: never fail on it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        utf8 = None if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=utf8, errors="backslashreplace")


def _forget_output() -> None:
    """What is still buffered goes nowhere: the interpreter flushes at exit, and fails where nobody reads."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
