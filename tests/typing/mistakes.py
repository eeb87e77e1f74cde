"""What type checkers are to catch: each line holds one mistake, and a comment that would be refused if it were none.

Nothing here runs.
"""

# What follows from a mistake, and is none of its own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import tokentape
from tokentape import AsyncClient, ChatJob, Client, Settings


def mistakes(client: Client, settings: Settings, job: ChatJob) -> None:
    tokentape.Klient  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
    client.submit("Hi")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.submit(model="m", messages="Hi")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.submit(model="m", timeout_s="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.submit(model="m", priority="hgih")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.submit_many([], timeouts=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.text("job_0", on_restart="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.result("job_0").txt  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
    settings.lease_s = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    job.tenant = "t"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    for entry in client.follow("job_0"):
        entry.data.choices  # type: ignore[union-attr]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018


async def mistakes_with_asyncio(client: AsyncClient) -> None:
    client.cancel("job_0")  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    client.submit(model="m").id  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
    for _ in client.text("job_0"):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
