"""`tokentape batch`, as an entry point of the group `tokentape.commands`.

What a command does is elsewhere (`batch.py`); here are its options, its signals, its exit code and its words.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, TypedDict, Unpack

import click

from tokentape.errors import TokentapeError
from tokentape.job import MAX_TIMEOUT_S, PRIORITIES, Priority
from tokentape.printable import printable
from tokentape.settings import Settings

from .batch import DEFAULT_TIMEOUT_S, DEFAULT_WINDOW, Batch, Options, Stopped, identity
from .input_file import BadInput, InputFile
from .output_files import BatchConflict, OutputFiles, check_place, default_errors, new_record, read_record, record_path
from .progress import Display, display, say
from .servers import Servers
from .summary import Summary

_BATCH_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class _RunOptions(TypedDict):
    """The options that are the batch's own: see Options."""

    upstream: str | None
    priority: Priority
    window: int
    timeout_s: float
    keep: bool
    retry_failed: bool


def _checked_id(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _BATCH_ID.fullmatch(value):
        raise click.BadParameter("1 to 128 letters, digits and . _ : -, beginning with a letter or digit")
    return value


@click.group()
def batch() -> None:
    """Run files of chat requests, each line answered exactly once."""


@batch.command()
@click.argument("input_path", metavar="IN.jsonl", type=click.Path(path_type=Path))
@click.option("--out", "out_path", metavar="OUT.jsonl", required=True, type=click.Path(path_type=Path),
              help="Completed lines, in OpenAI's batch output format, as they finish.")  # fmt: skip
@click.option("--errors", "errors_path", metavar="ERR.jsonl", type=click.Path(path_type=Path),
              help="All other lines. [default: OUT.errors.jsonl]")  # fmt: skip
@click.option("--model", help="The model of bodies that name none.")
@click.option("--upstream", help="The workers' upstream to use, by name. [default: chosen by the model]")
@click.option("--priority", type=click.Choice(PRIORITIES), default="low", show_default=True)
@click.option("--window", type=click.IntRange(1, 100_000), default=DEFAULT_WINDOW, show_default=True,
              help="Lines under way at once.")  # fmt: skip
@click.option("--timeout", "timeout_s", metavar="SECONDS", type=click.FloatRange(1, MAX_TIMEOUT_S),
              default=DEFAULT_TIMEOUT_S, show_default=True,
              help="Completion window of the whole batch, from its first run on.")  # fmt: skip
@click.option("--batch-id", "--name", "batch_id", metavar="ID", callback=_checked_id,
              help="Give the batch a name. [default: made of the input's content, --model and --upstream]")  # fmt: skip
@click.option("--keep", is_flag=True,
              help="Leave completed jobs in Redis for TOKENTAPE_RETENTION_S, not for a minute.")  # fmt: skip
@click.option("--retry-failed", is_flag=True, help="Ask the lines again that stand in ERR.jsonl.")
@click.option("--json", "as_json", is_flag=True,
              help="Print a summary as JSON on standard output, and an error as JSON on standard error.")  # fmt: skip
@click.option("--no-progress", is_flag=True, help="No bar and no progress lines.")
@click.option("--quiet", is_flag=True, help="Nothing but errors on standard error.")
def run(
    *,
    input_path: Path,
    out_path: Path,
    errors_path: Path | None,
    model: str | None,
    batch_id: str | None,
    as_json: bool,
    no_progress: bool,
    quiet: bool,
    **options: Unpack[_RunOptions],
) -> None:
    """Run every line of IN.jsonl as a chat job: one line of output or errors for each.

    A line is OpenAI's batch format (custom_id, method POST, url /v1/chat/completions, body) or a plain chat body, whose
    custom_id is then its line number, as line-000001. Blank lines are skipped. The whole file is checked first; if any
    line is bad, the first ones are named and nothing is enqueued.

    Running the same command again goes on where it was, after Ctrl-C, SIGKILL or an outage: lines that stand in the
    files are skipped, jobs under way are joined, answers that are there are fetched. To have everything answered anew,
    choose another --out and a --batch-id. OUT.jsonl.batch says which batch the files belong to; leave it beside them.

    With --retry-failed the lines that stand in ERR.jsonl (failed, cancelled or expired) are asked again, once in each
    run, and the new answer takes the place of the old one. --timeout then begins anew.

    A server that is not there, or takes no jobs, is waited for: for TOKENTAPE_REDIS_WAIT_S at the start, and for ten
    minutes once the run has begun.

    Once a completed line is on the disk, its job stays in Redis for one more minute.

    With --json a summary stands on standard output if anything was answered or enqueued, also where the run was
    interrupted or ended by an error; standard error holds that error as one JSON object, and no progress unless it is
    a terminal.

    \b
    Exit codes: 0 all lines completed; 1 some failed or were cancelled; 2 bad input, wrong files or usage;
    4 some expired with the window; 5 Redis not reachable; 74 a file of results cannot be written; 130 interrupted
    (143 by SIGTERM).

    \b
    Examples:
      tokentape batch run prompts.jsonl --out answers.jsonl --model gpt-4o-mini
      tokentape batch run prompts.jsonl --out answers.jsonl --model gpt-4o-mini --retry-failed
    """
    summary = Summary(out_path, errors_path or default_errors(out_path))
    stop = StopSignals()
    try:
        with stop.heard(), display(wanted=not (no_progress or quiet), lines=not as_json) as shown:
            _run(input_path, summary, stop, shown, model=model, batch_id=batch_id, options=Options(**options))
        code = summary.exit_code
    except (Stopped, KeyboardInterrupt):
        summary.interrupted = True
        code = stop.exit_code
    except TokentapeError as error:
        summary.error = error
        _tell(summary, as_json=as_json, quiet=quiet)
        raise  # to be told as the errors of all commands are
    _tell(summary, as_json=as_json, quiet=quiet)
    click.get_current_context().exit(code)


@batch.command()
@click.argument("input_path", metavar="IN.jsonl", type=click.Path(path_type=Path))
@click.option("--out", "out_path", metavar="OUT.jsonl", required=True, type=click.Path(path_type=Path),
              help="The same as that of the run.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print how many lines were cancelled as JSON.")
def cancel(*, input_path: Path, out_path: Path, as_json: bool) -> None:
    """Cancel what a run has left under way.

    Interrupted, `batch run` leaves to the workers what they have, for the next run to fetch. This ends it, queued or
    running, and writes its lines to the errors as cancelled; answers that had come meanwhile are written down, too.
    Interrupt the run first. Lines that were not enqueued are left to the next run; cancelled ones are asked again with
    --retry-failed.

    \b
    Example:
      tokentape batch cancel prompts.jsonl --out answers.jsonl
    """
    settings = Settings.load()
    record = read_record(out_path)
    if record is None:
        raise BatchConflict(f"{record_path(out_path)} is not there: no batch was run with {out_path} as output")
    # As the record has it: beside the output by its name, whatever folder is a link.
    errors_path = Path(os.path.normpath(out_path.absolute().parent / record.errors))
    with InputFile(input_path, model=record.model) as source:
        checked = source.check()
        record = record.model_copy(update={"input_sha256": checked.sha256})
        with OutputFiles(out_path, errors_path, record) as files, Servers(settings) as servers:
            options = Options(upstream=record.upstream, retry_failed=True)
            run = Batch(source, checked, files, servers, options, observer=Display(), stop=lambda: False)
            before = run.counts.answered
            run.cancel()
    cancelled, ended = run.counts.cancelled, run.counts.answered - before - run.counts.cancelled
    if as_json:
        facts = {"object": "batch_cancel", "batch_id": record.batch_id, "cancelled": cancelled, "had_ended": ended}
        click.echo(json.dumps(facts))
    else:
        click.echo(f"{cancelled:,} lines cancelled; {ended:,} had ended, and are written down.")


class StopSignals:
    """Whether the command was asked to stop, and how."""

    def __init__(self) -> None:
        self._number: int | None = None

    def requested(self) -> bool:
        return self._number is not None

    @property
    def exit_code(self) -> int:
        return 128 + (self._number or signal.SIGINT)

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """The first one asks the run to stop between turns; the next one stops it where it is."""
        if self._number is not None:
            raise KeyboardInterrupt
        self._number = number

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask first."""
        before = {number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _run(
    input_path: Path,
    summary: Summary,
    stop: StopSignals,
    shown: Display,
    *,
    model: str | None,
    batch_id: str | None,
    options: Options,
) -> None:
    settings = Settings.load()
    for path in (summary.out, summary.errors):
        check_place(path)
    _check_paths(input_path, summary.out, summary.errors)

    def watch(done_bytes: int) -> None:
        shown.checking(done_bytes, source.size)
        if stop.requested():
            raise Stopped

    def trouble(what: str) -> None:
        shown.noted(f"{what}; trying again")
        if stop.requested():
            raise Stopped

    with InputFile(input_path, model=model) as source:
        checked = source.check(watch)
        record = new_record(
            summary.out,
            summary.errors,
            batch_id=batch_id or identity(checked.sha256, upstream=options.upstream, model=model),
            input_sha256=checked.sha256,
            upstream=options.upstream,
            model=model,
        )
        with OutputFiles(summary.out, summary.errors, record) as files, Servers(settings, trouble) as servers:
            run = Batch(source, checked, files, servers, options, observer=shown, stop=stop.requested)
            summary.begin(files.record.batch_id, run.counts)
            try:
                run.run()
            finally:
                if not run.counts.begun:
                    files.withdraw()


def _check_paths(*paths: Path) -> None:
    """Three different files, whatever they are called. Raises BatchConflict."""
    known: dict[str, Path] = {}
    for path in paths:
        if (other := known.setdefault(os.path.realpath(path), path)) is not path:
            raise BatchConflict(f"{path} and {other} are the same file; input, --out and --errors must be three")


def _tell(summary: Summary, *, as_json: bool, quiet: bool) -> None:
    """What the run came to; with --json nothing but that, so that stderr holds JSON alone."""
    if as_json:
        if summary.ran:
            click.echo(json.dumps(summary.as_dict(), ensure_ascii=False))
        return
    if isinstance(summary.error, BadInput):
        for line in summary.error.listing():
            say(printable(line), sys.stderr)
    if not quiet and (text := summary.text()) is not None:
        say(text, sys.stderr)
