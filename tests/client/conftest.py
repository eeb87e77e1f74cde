"""Tapes written by hand, entry by entry, as a worker would."""

from __future__ import annotations

import itertools
import queue
import secrets
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tokentape import Client, Settings, tape
from tokentape.chunk import ChatCompletionChunk
from tokentape.connection import Server
from tokentape.job import ErrorInfo
from tokentape.tape import EndData, Position, Tape


class Writer:
    """The worker's side of one tape."""

    def __init__(self, server: Server, namespace: str, job_id: str) -> None:
        self.tape = Tape(namespace, job_id)
        self._server = server
        self._deliveries = itertools.count(1)
        self._attempt = 0
        self._seq = 1
        self._token = ""

    def claim(self, reason: str = "submitted") -> str:
        """Begin the next attempt. -> its token"""
        self._attempt, self._seq = self._attempt + 1, 1
        self._token = secrets.token_hex(8)
        command = self.tape.claim(
            delivery=next(self._deliveries), try_=0, worker="w", upstream="default", token=self._token, reason=reason,
            budget=9, retention_s=60,
        )  # fmt: skip
        ((verdict, *_),) = self._server.run([command])
        assert verdict == b"run"
        return self._token

    def say(self, *texts: str) -> None:
        chunks = [
            ChatCompletionChunk.model_validate({"choices": [{"index": 0, "delta": {"content": text}}]}).to_json()
            for text in texts
        ]
        ((verdict, *_),) = self._server.run([self.tape.append(self._attempt, self._token, self._seq, chunks)])
        assert verdict == b"ok"
        self._seq += len(texts)

    def end(self, error: ErrorInfo | None = None) -> None:
        end = EndData(status="failed" if error else "completed", error=error, attempts=self._attempt)
        position = Position(self._attempt, self._seq)
        ((verdict, *_),) = self._server.run([self.tape.end(position, self._token, end, b"", 60)])
        assert verdict == b"ok"


class Desk:
    """A client on one namespace, and writers for its jobs."""

    def __init__(self, settings: Settings, client: Client, server: Server) -> None:
        self.settings = settings
        self.client = client
        self._server = server

    def job(self) -> tuple[str, Writer]:
        """A submitted job and the writer of its tape."""
        job = self.client.submit(model="m", messages=[{"role": "user", "content": "Hi"}])
        return job.id, self.writer(job.id)

    def writer(self, job_id: str) -> Writer:
        """Another worker's side of a tape."""
        return Writer(self._server, self.settings.namespace, job_id)


class Following:
    """A follower in a thread; `next` gives its entries as they come."""

    def __init__(self, desk: Desk, job_id: str, **options: Any) -> None:
        self.entries: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._follow, args=(desk, job_id, options), daemon=True)
        self._thread.start()

    def _follow(self, desk: Desk, job_id: str, options: dict[str, Any]) -> None:
        try:
            for entry in desk.client.follow(job_id, **options):
                self.entries.put(entry)
            self.entries.put(None)
        except Exception as error:  # noqa: BLE001  (whatever it is, the test looks at it)
            self.entries.put(error)

    def next(self) -> Any:
        return self.entries.get(timeout=30)

    def rest(self) -> list[str]:
        ids = []
        while (entry := self.next()) is not None:
            assert not isinstance(entry, Exception), entry
            ids.append(entry.id)
        return ids


@pytest.fixture
def desk(redis_url: str, redis_client: redis.Redis, namespace: str) -> Iterator[Desk]:
    settings = Settings.load({}, redis_url=redis_url, namespace=namespace, reader_buffer_bytes=4096)
    with Client(settings=settings) as client:
        yield Desk(settings, client, Server(redis_client, tape.SCRIPTS))
