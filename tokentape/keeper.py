"""A process that is kept running: its lines go to the log, and when it ends it is started again.

After a short life the pause before the next start doubles, to half a minute; after a long one it begins anew. A process
that says by its exit code that its settings are wrong is not started again: nothing would be different. One that has
greeted us, or ended otherwise before, has proved them right, and is: its port may be another's for a while, or somebody
writes to the configuration file just then.

Like every child of this package it ends with its owner, see child.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from typing import Final

from . import exit_codes
from .child import ChildFailed, command
from .errors import ConfigError
from .process_log import ProcessLog, error_message

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
#: Who lived for so long had started well.
LONG_LIFE_S: Final = 30.0

#: What workers log once they take jobs.
_READY: Final = '"worker ready"'
#: A line longer than this is cut into several.
_LINE_BYTES: Final = 64 * 1024
#: For what an ended process had written to be read; only a process that it started itself can hold its pipes longer.
_REST_WAIT_S: Final = 2.0


class Backoff:
    """How long to wait before the next start."""

    def __init__(self) -> None:
        self._next_s = FIRST_PAUSE_S

    def after(self, lived_s: float) -> float:
        """The pause, in seconds, after a life of `lived_s`."""
        if lived_s >= LONG_LIFE_S:
            self._next_s = FIRST_PAUSE_S
        pause_s, self._next_s = self._next_s, min(LONGEST_PAUSE_S, self._next_s * 2)
        return pause_s


class Keeper:
    """Runs `module` as a child named `name` in the log, with `env` as its whole environment. For one event loop.

    `arguments` are those of the next start; the owner may change them. `greeting`: for those that say by the first line
    on their standard output that they are ready; gets the one of the first life, and none of them stands in the log.
    `keep` is to be run as a task.
    """

    def __init__(
        self,
        name: str,
        module: str,
        *arguments: str,
        env: Mapping[str, str],
        log: ProcessLog,
        greeting: asyncio.Future[str] | None = None,
    ) -> None:
        self.name = name
        self.arguments = arguments
        self._module = module
        self._env = dict(env)
        self._log = log
        self._greeting = greeting
        self._process: Process | None = None
        self._stopping = asyncio.Event()
        self._last_words = ""
        #: Whether a life of it has shown that its settings are right.
        self._proved = False
        #: Set once it has said by its log that it takes jobs, as workers do.
        self.ready = asyncio.Event()

    async def keep(self) -> None:
        """Keep it running until `stop`.

        Raises ConfigError where it finds its settings wrong, ChildFailed where it ends before its greeting.
        """
        backoff = Backoff()
        while not self._stopping.is_set():
            born = time.monotonic()
            how = await self._live_and_tell()
            if self._stopping.is_set():
                break
            pause_s = backoff.after(time.monotonic() - born)
            self._log.say(f"{self.name} {how}, starts again in {pause_s:g} s", level="warning")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()

    async def _live_and_tell(self) -> str:
        """-> how a life ended that may be followed by another"""
        try:
            code = await self._live()
        except OSError as error:  # no process, no descriptor, no memory left to start one with
            return f"cannot be started ({error.strerror})"
        if self._stopping.is_set() or (self._greeting is not None and self._greeting.done()):
            return how_it_ended(code)
        if code == exit_codes.USAGE and not self._proved:
            raise ConfigError(f"{self.name}: {self._last_words.removeprefix('error: ')}")
        if self._greeting is not None:
            raise ChildFailed(f"{self.name} {how_it_ended(code)}: {self._last_words or 'it said nothing'}")
        self._proved = self._proved or code != exit_codes.USAGE
        return how_it_ended(code)

    def stop(self) -> None:
        """Tell it to end (SIGTERM), and start it no more. The services take a second time as `at once`."""
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would, and start it no more."""
        self._stopping.set()
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _live(self) -> int:
        """One life. -> its exit code"""
        process = self._process = await asyncio.create_subprocess_exec(
            *command(self._module, *self.arguments),
            stdin=PIPE,  # nothing is written to it: see child.py
            stdout=PIPE,
            stderr=PIPE,
            env=self._env,
            process_group=0,
        )
        self._log.say(f"{self.name} started", pid=process.pid)
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        readers = [asyncio.create_task(self._read_stdout(process)), asyncio.create_task(self._read_stderr(process))]
        try:
            code = await process.wait()
            await asyncio.wait(readers, timeout=_REST_WAIT_S)
        finally:
            if process.returncode is None:
                process.kill()
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, process.wait(), return_exceptions=True)
        return code

    async def _read_stdout(self, process: Process) -> None:
        greeted = self._greeting is None
        async for line in lines(process.stdout):
            if greeted:
                self._log.add(self.name, line)
                continue
            greeted = True
            self._log.say(f"{self.name} ready")
            if self._greeting is not None and not self._greeting.done():
                self._greeting.set_result(line)

    async def _read_stderr(self, process: Process) -> None:
        async for line in lines(process.stderr):
            words = error_message(line) or line.strip()
            self._last_words = words or self._last_words
            if _READY in line:
                self.ready.set()
            self._log.add(self.name, line)


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended (exit code {code})"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


async def lines(stream: asyncio.StreamReader | None) -> AsyncIterator[str]:
    """What comes, line by line and without the ends; bytes that are no UTF-8 are replaced."""
    rest = b""
    while stream is not None and (data := await stream.read(_LINE_BYTES)):
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) >= _LINE_BYTES:
            whole.append(rest)
            rest = b""
        for line in whole:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
