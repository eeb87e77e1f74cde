"""Blocking calls in threads that nobody has to wait for.

`asyncio.to_thread` takes a thread of the loop's pool, and both the loop and the interpreter wait for those at their
end: with a server that is silent, a stopped worker would stay for as long as its calls do. These are daemons.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


def in_thread(function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    """Begin a call in a thread of its own. -> what it will return or raise; cancelled, the call goes on unheard."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def resolve(settle: Callable[[], None]) -> None:
        if not answer.done():
            settle()

    def work() -> None:
        try:
            settle = functools.partial(answer.set_result, function(*args))
        except Exception as error:  # noqa: BLE001  (whoever waits gets it)
            settle = functools.partial(answer.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(resolve, settle)

    threading.Thread(target=work, name="tokentape-call", daemon=True).start()
    return answer
