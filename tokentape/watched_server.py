"""The embedded server of `tokentape up`: it is started again when it ends, and what it warns of goes to the log.

EmbeddedServer blocks and wants one thread at a time, so it has one of its own here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from .child import ChildFailed
from .embedded import EmbeddedServer
from .errors import RedisUnavailable
from .keeper import Backoff, how_it_ended
from .process_log import ProcessLog

T = TypeVar("T")

NAME: Final = "server"
_LOOK_EVERY_S: Final = 0.25
#: A line of its log: process and role, date, level, message.
_LINE: Final = re.compile(r"\d+:\w \d+ \w+ \d+ [\d:.]+ ([.\-*#]) (.*)")
_WARNING: Final = "#"


class WatchedServer:
    """One embedded server, with a password. `data` as EmbeddedServer has it."""

    def __init__(self, data: Path | None, log: ProcessLog) -> None:
        self._data = data
        self._log = log
        self._server = EmbeddedServer(data=data, password=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="server")
        self._said: BinaryIO | None = None

    @property
    def url(self) -> str:
        """Where it is reached, with its password; the same for as long as it is watched."""
        return self._server.url

    @property
    def pid(self) -> int:
        """Of the server process."""
        return self._server.pid

    async def start(self) -> None:
        """Start it. Raises ChildFailed with the end of its log, and ExtraMissing."""
        try:
            await self._do(self._server.start)
        except RedisUnavailable as error:  # of our own server: nobody has looked for it at a wrong place
            raise ChildFailed(str(error)) from error
        except OSError as error:  # the folder for the data
            raise ChildFailed(f"{self._data} cannot be used ({error.strerror})") from error
        self._listen()

    async def watch(self) -> None:
        """Start it again whenever it ends. Raises ChildFailed where that is past doing."""
        backoff, since = Backoff(), asyncio.get_running_loop().time()
        lost = "" if self._data else "; what it knew is lost (--data DIR keeps it)"
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            code = await self._look()
            self._pass_on()
            if code is None:
                continue
            pause_s = backoff.after(asyncio.get_running_loop().time() - since)
            self._log.say(f"server {how_it_ended(code)}, starts again in {pause_s:g} s{lost}", level="warning")
            await asyncio.sleep(pause_s)
            since = asyncio.get_running_loop().time()
            while (refusal := await self._start_again()) is not None:
                pause_s = backoff.after(0)
                self._log.say(f"{refusal}; tries again in {pause_s:g} s", level="error")
                await asyncio.sleep(pause_s)
                await self._look()  # raises where nobody is left who could start it
            self._log.say("server started", pid=self._server.pid)
            self._listen()

    async def stop(self) -> None:
        """End it in good order: what it keeps is on the disk then. Not while `watch` runs. Safe to repeat."""
        if self._said is not None:
            self._said.close()
            self._said = None
        await self._do(self._server.stop)
        self._thread.shutdown()

    async def _look(self) -> int | None:
        """The exit code of one that has ended."""
        try:
            return await self._do(self._server.exit_code)
        except RedisUnavailable as error:
            raise ChildFailed(str(error)) from error

    async def _start_again(self) -> str | None:
        """-> None, or why it does not serve: as where another program has taken its port meanwhile"""
        try:
            await self._do(self._server.restart)
        except RedisUnavailable as error:
            return str(error).partition("\n")[0].rstrip(".")
        return None

    async def _do(self, what: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, what)

    def _listen(self) -> None:
        """Begin behind what it says of each start."""
        if self._said is None:
            self._said = self._server.log_path.open("rb")
        self._said.seek(0, 2)

    def _pass_on(self) -> None:
        """What it has said since; but for warnings only where `debug` is asked for."""
        if self._said is None:
            return
        for line in self._said.read().decode(errors="replace").splitlines():
            found = _LINE.fullmatch(line)
            level = "warning" if found is None or found[1] == _WARNING else "debug"
            self._log.say(found[2] if found else line, process=NAME, level=level)
