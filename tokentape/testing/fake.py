"""FakeStack: the clients on fakeredis, and a worker's part played by the test, entry by entry.

fakeredis runs the project's own Lua scripts, and its tests hold it to the same contract as the real servers: what is
refused there is refused here. RQ's records of a job are not kept up, nothing expires by itself, and no worker shows
in an overview. For outages, deploys and timing take `Stack`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from ..async_client import AsyncClient
from ..chunk import ChatCompletionChunk, Usage
from ..client import Client
from ..completion import Fold
from ..connection import Server
from ..errors import ExtraMissing, JobNotFound, TokentapeError
from ..job import ErrorInfo
from ..operations import Overview
from ..queue import QueueKeys
from ..scripts import Command
from ..settings import Settings
from ..tape import SCRIPTS, EndData, Position, QueuedData, Tape, decode_entry, text_of

if TYPE_CHECKING:
    import redis
    import redis.asyncio

#: What the entries name as the worker.
WORKER: Final = "fake"
#: Restarts that one job may have: more than a test wants.
_BUDGET: Final = 1_000_000


@dataclass
class _Attempt:
    """The attempt that the test is writing."""

    number: int
    token: str
    model: str
    seq: int = 1
    fold: Fold = field(default_factory=Fold)
    #: The choices that have said something: each is finished with the answer.
    choices: set[int] = field(default_factory=lambda: {0})


class _Client(Client):
    """A client whose overview a worker has swept for."""

    def __init__(self, fake: FakeStack) -> None:
        super().__init__(connection=fake.redis, settings=fake.settings)
        self._fake = fake

    def overview(self) -> Overview:
        self._fake.sweep()
        return super().overview()


class _AsyncClient(AsyncClient):
    """The same for asyncio."""

    def __init__(self, fake: FakeStack, connection: redis.asyncio.Redis) -> None:
        super().__init__(connection=connection, settings=fake.settings)
        self._fake = fake

    async def overview(self) -> Overview:
        self._fake.sweep()
        return await super().overview()


class FakeStack:
    """Clients without a server, and answers that the test gives. `with FakeStack() as fake: …`, or stop() at the end.

    `settings`: by name, as in `namespace="t"`. Raises ExtraMissing without the extra `testing`, ConfigError for a
    wrong setting. For the threads and event loops of one process.
    """

    def __init__(self, **settings: Any) -> None:
        try:
            import fakeredis  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ExtraMissing("tokentape.testing.FakeStack", "testing") from error
        self._fakeredis = fakeredis
        self._server = fakeredis.FakeServer()
        #: A blocking redis client of the same server, which answers bytes: for a look at keys.
        self.redis: redis.Redis = fakeredis.FakeRedis(server=self._server)
        #: What its clients run with.
        self.settings: Settings = Settings.load({}, **settings)
        self._keys = QueueKeys(self.settings.namespace)
        self._scripts = Server(self.redis, SCRIPTS)
        self._attempts: dict[str, _Attempt] = {}
        self._clients: list[Client] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the clients that client() gave, and forget every job. Safe to repeat."""
        while self._clients:
            self._clients.pop().close()
        self._attempts.clear()
        self.redis.flushall()
        self.redis.close()

    def client(self) -> Client:
        """A new client. Closed when the stack stops; closing it before is fine."""
        client = _Client(self)
        self._clients.append(client)
        return client

    def async_client(self) -> AsyncClient:
        """A new asyncio client, for the running loop: `async with fake.async_client() as client`."""
        return _AsyncClient(self, self._fakeredis.FakeAsyncRedis(server=self._server))

    # ---- what was submitted

    def queued(self) -> list[str]:
        """The ids of the jobs that nobody has answered yet, in the order in which a worker would take them.

        One that was cancelled meanwhile is none of them.
        """
        self.sweep()
        return [text_of(job_id) for key in self._keys.queues for job_id in self.redis.lrange(key, 0, -1)]

    def request(self, job_id: str) -> dict[str, Any]:
        """The request body that was submitted. Raises JobNotFound."""
        body = self.redis.get(self._tape(job_id).request_key)
        if body is None:
            raise JobNotFound(job_id)
        request: dict[str, Any] = json.loads(body)
        return request

    # ---- what a worker does

    def say(self, job_id: str, *pieces: str | dict[str, Any], choice: int = 0) -> None:
        """Add chunks to the job's answer, which begins if it has not: a chunk for each text, or for each `delta` of a
        chat.completion.chunk, as in `{"tool_calls": […]}`. `choice`: which of several answers it is.

        Raises JobNotFound, and TokentapeError where the job has ended, by a cancel for instance. Repeating it says the
        pieces once more.
        """
        attempt = self._attempts.get(job_id) or self._begin(job_id, "submitted")
        for piece in pieces:
            self._add(job_id, attempt, {"content": piece} if isinstance(piece, str) else piece, choice=choice)

    def answer(
        self,
        job_id: str,
        *pieces: str | dict[str, Any],
        finish_reason: str = "stop",
        usage: Usage | Mapping[str, Any] | None = None,
    ) -> None:
        """Say the pieces, finish every choice, and complete the job. Raises as say() does.

        `usage`: the tokens that it took, in a last chunk, as in `{"prompt_tokens": 7, "completion_tokens": 2}`.
        """
        self.say(job_id, *pieces)
        attempt = self._attempts[job_id]
        for choice in sorted(attempt.choices):
            self._add(job_id, attempt, {}, choice=choice, finish_reason=finish_reason)
        counts = None if usage is None else Usage.model_validate(usage)
        if counts is not None:
            self._append(job_id, attempt, {"choices": [], "usage": counts.model_dump(exclude_unset=True)})
        end = EndData(status="completed", usage=counts, attempts=attempt.number)
        self._end(job_id, end, attempt.fold.completion().to_json())

    def fail(
        self,
        job_id: str,
        error_type: str = "upstream_error",
        message: str = "the upstream gave up",
        *,
        retryable: bool = False,
        upstream_status: int | None = None,
    ) -> None:
        """End the job as failed: JobFailed with this ErrorInfo. What was said stays readable. Raises as say() does."""
        self.say(job_id)
        error = ErrorInfo(type=error_type, message=message, retryable=retryable, upstream_status=upstream_status)
        self._end(job_id, EndData(status="failed", error=error, attempts=self._attempts[job_id].number), b"")

    def expire(self, job_id: str) -> None:
        """End the job as one whose `timeout_s` is over: JobExpired. What was said stays readable.

        Raises JobNotFound, and TokentapeError where the job has ended.
        """
        error = ErrorInfo(type="expired", message="the job's deadline passed", retryable=True)
        self._ask(job_id, self._tape(job_id).settle("expired", error, self.settings.retention_s), "ok")
        self._gone(job_id)

    def restart(self, job_id: str, reason: str = "worker_lost") -> None:
        """Begin the next attempt, as after a worker's death: what was said is void, and readers are told so.

        Raises as say() does.
        """
        self._begin(job_id, reason)

    def sweep(self) -> None:
        """Take jobs that clients have cancelled out of the queue's books. queued() and overview() do so by themselves.

        Safe to repeat.
        """
        for member in self.redis.execute_command("ZRANGE", self._keys.open, 0, -1):
            job_id = text_of(member)
            rows = self.redis.execute_command(*self._tape(job_id).last())
            if not rows or decode_entry(job_id, rows[0]).kind == "end":
                self._gone(job_id)

    # ---- the tape

    def _tape(self, job_id: str) -> Tape:
        return Tape(self.settings.namespace, job_id)

    def _begin(self, job_id: str, reason: str) -> _Attempt:
        rows = self.redis.execute_command(*self._tape(job_id).first())
        if not rows:
            raise JobNotFound(job_id)
        head = decode_entry(job_id, rows[0]).expect(QueuedData)
        token = secrets.token_hex(8)
        delivery = int(self.redis.hincrby(self._keys.deliveries, job_id, 1))
        reply = self._ask(
            job_id,
            self._tape(job_id).claim(
                delivery=delivery,
                try_=0,
                worker=WORKER,
                upstream=head.upstream or "default",
                token=token,
                reason=reason,
                budget=_BUDGET,
                retention_s=self.settings.retention_s,
            ),
            "run",
        )
        for key in self._keys.queues:
            self.redis.lrem(key, 0, job_id)
        self.redis.hset(self._keys.owners, job_id, f"{WORKER}|{delivery}|0")
        attempt = self._attempts[job_id] = _Attempt(int(reply[1]), token, head.model)
        self._add(job_id, attempt, {"role": "assistant"})
        return attempt

    def _add(
        self,
        job_id: str,
        attempt: _Attempt,
        delta: dict[str, Any],
        *,
        choice: int = 0,
        finish_reason: str | None = None,
    ) -> None:
        attempt.choices.add(choice)
        said = {"index": choice, "delta": delta, "finish_reason": finish_reason}
        self._append(job_id, attempt, {"choices": [said]})

    def _append(self, job_id: str, attempt: _Attempt, fields: dict[str, Any]) -> None:
        chunk = ChatCompletionChunk.model_validate(
            {
                "id": f"chatcmpl-{job_id[4:]}",
                "object": "chat.completion.chunk",
                "created": int(time.time()),
                "model": attempt.model,
                **fields,
            }
        )
        tape = self._tape(job_id)
        self._ask(job_id, tape.append(attempt.number, attempt.token, attempt.seq, [chunk.to_json()]), "ok")
        attempt.seq += 1
        attempt.fold.add(chunk)

    def _end(self, job_id: str, end: EndData, result: bytes) -> None:
        attempt = self._attempts[job_id]
        position = Position(attempt.number, attempt.seq)
        self._ask(job_id, self._tape(job_id).end(position, attempt.token, end, result, self.settings.retention_s), "ok")
        self._gone(job_id)

    def _ask(self, job_id: str, command: Command, wanted: str) -> list[Any]:
        ((verdict, *rest),) = self._scripts.run([command])
        if text_of(verdict) == wanted:
            return [verdict, *rest]
        self._gone(job_id)
        if text_of(verdict) == "gone":
            raise JobNotFound(job_id)
        raise TokentapeError(f"{job_id} takes nothing more: {text_of(verdict)}")

    def _gone(self, job_id: str) -> None:
        """Nobody works at it any more."""
        self._attempts.pop(job_id, None)
        self.redis.hdel(self._keys.owners, job_id)
        self.redis.zrem(self._keys.open, job_id)
        for key in self._keys.queues:
            self.redis.lrem(key, 0, job_id)
