"""`tokentape worker`, as an entry point of the group `tokentape.commands`."""

from __future__ import annotations

import sys
from typing import Any

import click

from tokentape.errors import ExtraMissing
from tokentape.settings import Settings


@click.command()
@click.option("--concurrency", type=click.IntRange(1, 100_000), help="Streams at once in this process. [default: 256]")
@click.option("--burst", is_flag=True, help="Stop when the queues are empty.")
@click.option(
    "--wait",
    is_flag=True,
    help="Where the server is not there at the start, wait for it as in any later outage, instead of exit code 5.",
)
@click.option("--json", "as_json", is_flag=True, help="The log as JSON lines; errors are JSON on stderr.")
def worker(concurrency: int | None, burst: bool, wait: bool, as_json: bool) -> None:
    """Run a worker: take jobs from the queues, call the upstreams, write every chunk to the jobs' tapes.

    Stop it with Ctrl-C or SIGTERM: streams may finish for TOKENTAPE_GRACE_S seconds, the rest goes back to the queue. A
    second Ctrl-C puts back at once.

    \b
    Examples:
      OPENAI_API_KEY=… tokentape worker --concurrency 500
      TOKENTAPE_CONFIG=tokentape.toml tokentape worker --json
      tokentape worker --wait                         (in a unit or a container: the server may come up later)
    """
    settings = Settings.load(concurrency=concurrency, log_format="json" if as_json else None)
    sys.exit(serve(settings, burst=burst, wait=wait))


def serve(settings: Settings, **options: Any) -> int:
    """Run a worker in this process. Raises ExtraMissing where its packages are not installed."""
    try:
        # Only here: the command's help must not need the extra.
        from .logs import configure  # noqa: PLC0415
        from .service import Worker  # noqa: PLC0415
    except ImportError as error:
        raise ExtraMissing("tokentape worker", "worker") from error
    log = configure(settings)
    try:
        return Worker(settings, **options).serve()
    finally:
        log.close()
