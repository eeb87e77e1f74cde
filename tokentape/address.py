"""Which server a client is connected to, as far as the client itself tells."""

from __future__ import annotations

import redis
import redis.asyncio
from redis.connection import parse_url

_PORT = 6379


def is_at(client: redis.Redis | redis.asyncio.Redis, url: str) -> bool:
    """Whether a client is known to be connected to the server and database of a URL."""
    mine, wanted = client.connection_pool.connection_kwargs, parse_url(url)
    return _place(mine) is not None and _place(mine) == _place({"host": "localhost", **wanted})


def _place(options: dict[str, object]) -> tuple[object, ...] | None:
    db = int(str(options.get("db") or 0))
    if path := options.get("path"):
        return (path, db)
    return (options["host"], int(str(options.get("port") or _PORT)), db) if options.get("host") else None
