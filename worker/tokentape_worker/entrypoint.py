"""What RQ's records name as the function to run, so that a stock `rq worker` can run our jobs too, one at a time.

A stock worker has popped the job by its own means. Before anything else the entry point adopts it: it takes a lease and
the ownership for itself, or returns where an owner stands. From there on it is a delivery like any other, under the
same rules; what the stock worker notes in RQ's records comes on top of them and says the same.

Our own workers never call this: they run jobs on their loop, and look only at whether the record names it.
"""

from __future__ import annotations

import asyncio
import contextlib

from tokentape import tape
from tokentape.connection import AsyncServer, Server, connect, connect_async, end_task
from tokentape.errors import JobError, JobNotFound
from tokentape.operations import failure
from tokentape.queue import QueueKeys
from tokentape.settings import Settings
from tokentape.tape import EndData, QueuedData, Tape, decode_entry, text_of

from . import limits
from . import ownership as own
from .attempt import Services
from .lease import Lease
from .ledger import Ledger
from .limits import Limits
from .ownership import Delivery, Ownership
from .pipelined import Pipelined
from .publisher import Publisher
from .run import Run
from .service import new_worker_name
from .sweep import release
from .upstreams import Upstreams


def run_job(job_id: str) -> None:
    """Run one job in this process, with the settings of its environment.

    Returns where the job has completed, or somebody else owns it. Raises JobFailed, JobCancelled or JobExpired, so that
    RQ records a failure, and JobNotFound where no tape stands. Safe to repeat: an ended job is not run again.
    """
    # Here a slot is a process of its own: there is nothing to win by giving it back, so waits are held in place.
    settings = Settings.load().model_copy(update={"hold_s": 3600.0})
    asyncio.run(_run(settings, job_id))


async def _run(settings: Settings, job_id: str) -> None:
    at = Tape(settings.namespace, job_id)
    async with contextlib.AsyncExitStack() as stack:
        tape_client = connect_async(settings.tape_url or settings.redis_url)
        stack.push_async_callback(tape_client.aclose)
        tapes = AsyncServer(tape_client, tape.SCRIPTS)
        (rows,) = await tapes.run([at.first()])
        if not rows:
            raise JobNotFound(job_id)
        head = decode_entry(job_id, rows[0]).expect(QueuedData)
        ledger = Ledger(Server(connect(settings.redis_url), (*own.SCRIPTS, *limits.SCRIPTS)))
        stack.callback(ledger.close)
        # Before the job is taken: it raises ConfigError for what cannot be used.
        upstreams = await stack.enter_async_context(Upstreams(settings, must_serve=False))
        await _adopt_and_run(settings, tapes, ledger, upstreams, Delivery(job_id, 0, "", head.priority))
        (rows,) = await tapes.run([at.last()])
    last = decode_entry(job_id, rows[0]) if rows else None
    if last is not None and last.kind == "end" and (end := last.expect(EndData)).status != "completed":
        error: JobError = failure(job_id, end)
        raise error


async def _adopt_and_run(
    settings: Settings, server: AsyncServer, ledger: Ledger, upstreams: Upstreams, job: Delivery
) -> None:
    ownership = Ownership(QueueKeys(settings.namespace), new_worker_name())
    reply = await ledger.one(ownership.adopt(job.job_id, job.priority, settings.lease_s), repeat=False)
    if text_of(reply[0]) == "0":
        return  # somebody runs it already
    job = job._replace(number=int(text_of(reply[0])), reason=text_of(reply[1]))
    tapes = Pipelined(server)
    publisher = Publisher(
        server,
        max_unpublished_bytes=settings.max_unpublished_bytes,
        resend_bytes=settings.resend_bytes,
        storage_wait_s=settings.storage_wait_s,
    )
    publishing = asyncio.create_task(publisher.run())
    try:
        run = Run(Services(settings, tapes, publisher, upstreams, Limits(settings, ledger)), ledger, ownership, job)
        lease = Lease(
            Server(connect(settings.redis_url), own.SCRIPTS),
            ownership,
            lease_s=settings.lease_s,
            renewal_s=settings.renewal_s,
            on_lost=lambda: run.stop("lost"),
        )
        lease.start()
        try:
            await run.execute()
        finally:
            lease.stop()
            await release(ledger, ownership, "leave")
    finally:
        await end_task(publishing)
        await tapes.close()
