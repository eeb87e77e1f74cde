"""Which server a client is connected to, as far as the client itself tells."""

from __future__ import annotations

import redis
import redis.asyncio
from redis.connection import parse_url

_PORT = 6379


def address_of(client: redis.Redis | redis.asyncio.Redis) -> str | None:
    """The address without user and password; None where the client does not know, as one of Sentinel's does not."""
    options = client.connection_pool.connection_kwargs
    db = int(options.get("db") or 0)
    if path := options.get("path"):
        return f"unix://{path}?db={db}"
    if not (host := options.get("host")):
        return None
    encrypted = issubclass(
        client.connection_pool.connection_class, redis.SSLConnection | redis.asyncio.connection.SSLConnection
    )
    host = f"[{host}]" if ":" in host else host
    return f"{'rediss' if encrypted else 'redis'}://{host}:{int(options.get('port') or _PORT)}/{db}"


def is_at(client: redis.Redis | redis.asyncio.Redis, url: str) -> bool:
    """Whether a client is known to be connected to the server and database of a URL."""
    mine, wanted = client.connection_pool.connection_kwargs, parse_url(url)
    return _place(mine) is not None and _place(mine) == _place({"host": "localhost", **wanted})


def _place(options: dict[str, object]) -> tuple[object, ...] | None:
    db = int(str(options.get("db") or 0))
    if path := options.get("path"):
        return (path, db)
    return (options["host"], int(str(options.get("port") or _PORT)), db) if options.get("host") else None
