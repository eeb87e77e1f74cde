"""The commands on jobs: submit, follow, result, cancel, status. They need nothing but the bare install.

What they raise is turned into a message and an exit code by `cli.py`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, Literal, Self, TypeVar

import click

from .chunk import ChatCompletionChunk
from .client import DEFAULT_WAIT_S, Client
from .completion import ChatCompletion
from .errors import InvalidRequest, RedisUnavailable
from .job import DEFAULT_TIMEOUT_S, PRIORITIES, parse_request
from .live import Live
from .operations import failure
from .tables import job_table, overview_table
from .tape import START, AttemptData, EndData, Entry, Position
from .waiting import Waiting

Format = Literal["text", "chunks", "entries"]
Command = TypeVar("Command", bound=Callable[..., Any])

#: What `submit` asks for where nothing names a model.
DEFAULT_MODEL: Final = "gpt-4o-mini"
#: From one look to the next.
_WATCH_S: Final = 1.0


class Seconds(click.FloatRange):
    """A number in a range. click lets `nan` through, which no wait ever reaches."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return number


def _json_option(what: str) -> Callable[[Command], Command]:
    return click.option("--json", "as_json", is_flag=True, help=f"{what} Errors are JSON on stderr.")


def _wait_option() -> Callable[[Command], Command]:
    return click.option(
        "--wait",
        "wait_s",
        type=Seconds(min=0),
        default=DEFAULT_WAIT_S,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the job's end. The job goes on after that (exit code 4).",
    )


def _metadata(_ctx: click.Context, _option: click.Parameter, given: Sequence[str]) -> dict[str, str]:
    pairs = [item.partition("=") for item in given]
    for name, equals, value in pairs:
        if not name or not equals:
            raise click.BadParameter(f"{name}{equals}{value}: expected name=value, as in team=search")
    return {name: value for name, _, value in pairs}


def _params(_ctx: click.Context, _option: click.Parameter, given: Sequence[str]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{item}: expected name=json, as in temperature=0")
        if name in ("model", "messages"):
            raise click.BadParameter(f"{name}: comes from --model and PROMPT; a whole body goes into --request")
        try:
            params[name] = json.loads(value)
        except ValueError:
            example = f"{name}={json.dumps(value)}"
            raise click.BadParameter(f"{name}: {value!r} is not JSON; a text is written {example!r}") from None
    return params


@click.command()
@click.argument("prompt", required=False)
@click.option("--model", help=f"The model to ask. [default: {DEFAULT_MODEL}]")
@click.option(
    "--request", "request_file", type=click.File("rb"), metavar="FILE|-", help="A whole request body, as JSON."
)
@click.option("--upstream", help="The upstream by its name; else it follows from the model.")
@click.option("--priority", type=click.Choice(PRIORITIES), default="default", show_default=True)
@click.option("--key", help="Idempotency key: submitting again with the same key is the same job.")
@click.option("--tenant", default="", help="Whom the job belongs to; keys of two tenants never meet.")
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=DEFAULT_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="From now until the job expires, the queue included.",
)
@click.option("--metadata", multiple=True, callback=_metadata, metavar="NAME=VALUE", help="Kept with the job; repeat.")
@click.option("--param", "params", multiple=True, callback=_params, metavar="NAME=JSON", help="A parameter; repeat.")
@click.option("--native", is_flag=True, help="The --request is one of the upstream's own API, and is sent as it is.")
@click.option("--follow", "follows", is_flag=True, help="Stream the answer; the id goes to stderr.")
@_json_option('{"id": …} instead of the id alone; with --follow the entries, one JSON object a line.')
def submit(  # noqa: PLR0917 - click passes all by name
    prompt: str | None,
    model: str | None,
    request_file: BinaryIO | None,
    params: dict[str, Any],
    key: str | None,
    follows: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Submit a chat job. Prints its id, alone, on stdout.

    PROMPT is what the user says; - reads it from stdin.

    \b
    Examples:
      tokentape submit "Why is the sky blue?" --follow
      tokentape submit "Name a river" --model gpt-4o --param temperature=0 --param 'stop="."'
      tokentape submit --request body.json --key order-17
      job=$(tokentape submit - < question.txt) && tokentape result "$job"
    """
    if options["native"] and request_file is None:
        raise click.UsageError("--native: the body of the upstream's own API comes from --request FILE")
    request = _body(prompt, model, params) if request_file is None else _whole(request_file, prompt, model, params)
    with Client() as client:
        job = client.submit(request=request, idempotency_key=key, **options)
        with _said_when_interrupted(job.id):
            click.echo(json.dumps({"id": job.id}) if as_json else job.id, err=follows)
            if follows:
                _follow(client, job.id, None, "entries" if as_json else "text", DEFAULT_WAIT_S, as_json=as_json)


def _body(prompt: str | None, model: str | None, params: dict[str, Any]) -> dict[str, Any]:
    if prompt is None:
        raise click.UsageError("Give a PROMPT, or - for stdin, or --request FILE")
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"is not UTF-8 at byte {error.start}", field="stdin") from None
    if not prompt.strip():
        raise click.UsageError("The prompt is empty")
    if not prompt.isprintable() and any(
        "\udc80" <= char <= "\udcff" for char in prompt
    ):  # how arguments hold other bytes
        raise click.UsageError("PROMPT is not UTF-8")
    return {
        "model": DEFAULT_MODEL if model is None else model,
        "messages": [{"role": "user", "content": prompt}],
        **params,
    }


def _whole(file: BinaryIO, prompt: str | None, model: str | None, params: dict[str, Any]) -> dict[str, Any]:
    if prompt is not None or model is not None or params:
        raise click.UsageError("--request is a whole body: model, messages and parameters stand inside it")
    return parse_request(file.read())


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option("--after", metavar="ID", help="Only what comes after this entry, as in 1-42; 0-0 is everything.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(("text", "chunks", "entries")),
    help="The text, one chat.completion.chunk a line, or one entry a line: id, kind, data. [default: text]",
)
@_wait_option()
@_json_option("The same as --format entries.")
def follow(job_id: str, after: str | None, format_: Format | None, wait_s: float, as_json: bool) -> None:
    """Read a job's tape as it grows, to its end.

    Text begins with the newest attempt, unless --after says where. When an attempt starts over, stderr says so, and its
    text begins on a new line. Exit code 1 where the job did not complete.

    \b
    Examples:
      tokentape follow job_3f…
      tokentape follow job_3f… --format entries --after 1-42 | jq -c .data
    """
    if as_json and format_ == "text":
        raise click.UsageError("--json gives entries, or chunks with --format chunks; text is not JSON")
    with Client() as client, _said_when_interrupted(job_id):
        _follow(client, job_id, after, format_ or ("entries" if as_json else "text"), wait_s, as_json=as_json)


@click.command()
@click.argument("job_id", metavar="JOB")
@_wait_option()
@_json_option("The whole chat.completion.")
def result(job_id: str, wait_s: float, as_json: bool) -> None:
    """Print a job's answer, waiting for it where it is not there yet.

    \b
    Examples:
      tokentape result job_3f…
      tokentape result job_3f… --wait 0 --json | jq .usage
    """
    with Client() as client, Waiting(client, job_id, _nothing if as_json else _note):
        completion = client.result(job_id, wait_s)
    if as_json:
        click.echo(completion.model_dump_json(exclude_unset=True))
        return
    click.echo(completion.text)
    _note_what_is_not_text(completion)


@click.command()
@click.argument("job_id", metavar="JOB")
@_json_option('{"id": …, "cancelled": true or false}.')
def cancel(job_id: str, as_json: bool) -> None:
    """Cancel a job. What has arrived of its answer stays readable.

    A job that had ended already stays as it was, and that is no error. Safe to repeat.

    \b
    Example:
      tokentape cancel job_3f…
    """
    with Client() as client:
        cancelled = client.cancel(job_id)
    if as_json:
        click.echo(json.dumps({"id": job_id, "cancelled": cancelled}))
    else:
        click.echo(f"{job_id} {'cancelled' if cancelled else 'had ended already'}")


@click.command()
@click.argument("job_id", metavar="[JOB]", required=False)
@_json_option("The Job object, or the overview; with --watch one a line.")
@click.option("--watch", is_flag=True, help="Show it again each second, a job until it has ended, until Ctrl-C.")
def status(job_id: str | None, as_json: bool, watch: bool) -> None:
    """Show a job as its tape tells it, or without JOB the queues and the workers.

    \b
    Examples:
      tokentape status
      tokentape status --watch
      tokentape status job_3f… --json | jq -r .status
    """
    with Client() as client:
        if watch:
            _watch(client, job_id, as_json)
        else:
            click.echo(_status(client, job_id, as_json)[0])


def _status(client: Client, job_id: str | None, as_json: bool) -> tuple[str, bool]:
    """-> what to print, and whether it will change no more"""
    if job_id is None:
        overview = client.overview()
        return overview.model_dump_json() if as_json else overview_table(overview), False
    view = client.status(job_id)
    return view.model_dump_json() if as_json else job_table(view), view.ended_at is not None


def _watch(client: Client, job_id: str | None, as_json: bool) -> None:
    live = Live(sys.stdout)
    text, over = _status(client, job_id, as_json)  # a server that was never there is an error
    live.show(text)
    while not over:
        time.sleep(_WATCH_S)
        try:
            text, over = _status(client, job_id, as_json)
        except RedisUnavailable as error:  # an outage is what one watches for
            text = json.dumps({"error": str(error)}) if as_json else f"{error}; asking again"
        live.show(text)


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)


def _nothing(_text: str) -> None:
    """With --json stderr holds errors alone."""


def _note_what_is_not_text(completion: ChatCompletion) -> None:
    calls = sum(len(choice.message.tool_calls or ()) for choice in completion.choices[:1])
    for count, what in ((calls, "tool calls"), (len(completion.choices) - 1, "more choices")):
        if count > 0:
            _note(f"not shown here: {what} ({count}); tokentape result --json has them")


def _follow(client: Client, job_id: str, after: str | None, format_: Format, wait_s: float, *, as_json: bool) -> None:
    """Print a tape in one of the formats. Raises JobFailed, JobCancelled, JobExpired once its end is printed."""
    if after is None and format_ == "text":
        attempts = client.status(job_id).attempts
        start = Position(attempts, 0)  # a new attempt's text is the only one that counts
    else:
        start = Position.parse("0-0" if after is None else after)
        _check_cursor(client, job_id, start)
    end: EndData | None = None
    with (
        _Printed(format_, in_attempt=start.seq > 0) as printed,
        Waiting(client, job_id, _nothing if as_json else printed.note) as waiting,
    ):
        for entry in client.follow(job_id, start, wait_s):
            waiting.moved()
            printed.add(entry)
            if isinstance(entry.data, EndData):
                end = entry.data
    if end is not None and end.status != "completed":
        raise failure(job_id, end)
    if end is not None and format_ == "text":
        _note_what_is_not_text(client.result(job_id, 0))


def _check_cursor(client: Client, job_id: str, after: Position) -> None:
    """Somebody who types a cursor that nothing will ever follow is told, instead of waiting for it."""
    if after == START:
        return
    view = client.status(job_id)
    if view.ended_at is not None and after > Position.parse(view.last_entry_id):
        raise click.BadParameter(f"{after} is beyond the end of the tape, {view.last_entry_id}", param_hint="--after")


class _Printed:
    """What stands on stdout. Leaving it ends the line that is open, so that whatever follows begins on its own.

    `in_attempt`: an earlier reading printed some of the attempt that this one goes on with.
    """

    def __init__(self, format_: Format, *, in_attempt: bool) -> None:
        self._format = format_
        self._void_if_restarted = in_attempt
        self._line_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close_line()

    def add(self, entry: Entry) -> None:
        data = entry.data  # parsed in every format: what cannot be read is not passed on
        if isinstance(data, AttemptData) and self._void_if_restarted:
            self._close_line()
            click.echo(
                f"attempt {entry.position.attempt} starts over ({data.reason}): what came before is void", err=True
            )
        if isinstance(data, ChatCompletionChunk):
            self._void_if_restarted = True
        if self._format == "entries":
            click.echo(b'{"id":"%s","kind":"%s","data":%s}' % (entry.id.encode(), entry.kind.encode(), entry.raw))
        elif isinstance(data, ChatCompletionChunk):
            self._add_chunk(entry.raw, data)

    def note(self, text: str) -> None:
        """On a terminal, where stdout and stderr are one, on a line of its own."""
        if sys.stdout.isatty():
            self._close_line()
        _note(text)

    def _add_chunk(self, raw: bytes, chunk: ChatCompletionChunk) -> None:
        if self._format == "chunks":
            click.echo(raw)
            return
        text = "".join(choice.delta.content or "" for choice in chunk.choices if choice.index == 0)
        if text:
            click.echo(text, nl=False)
            self._line_open = not text.endswith("\n")

    def _close_line(self) -> None:
        if self._line_open:
            click.echo()
            self._line_open = False


@contextmanager
def _said_when_interrupted(job_id: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"interrupted; the job goes on: tokentape follow {job_id}", err=True)
        raise
