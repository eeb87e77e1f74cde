"""A small world with one clock, in which processes talk to real servers one command at a time.

Clients, readers and workers are generators. They yield what a process can wait for: commands for a server (`Ask`), or
time (`Pause`). The world decides who goes next, and what becomes of a command: it runs, its request or its reply is
lost, or it arrives late, when its sender has long given it up. The scripts are the product's; only their clock is
replaced, by a key that the world sets, so that seconds cost nothing and a seed gives the same run again.

`clients.py`, `workers.py` and `runs.py` have the processes, `faults.py` what goes wrong, `invariants.py` what must hold
at the end.
"""

from __future__ import annotations

import inspect
import random
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import redis
from redis.exceptions import OutOfMemoryError, RedisError

from tests.contract.bench import texts
from tokentape import queue, tape
from tokentape.operations import Ask, Operations
from tokentape.queue import QueueKeys
from tokentape.scripts import Command, Script
from tokentape.settings import Settings
from tokentape.tape import Tape
from tokentape_worker import ownership

if TYPE_CHECKING:
    from tests.contract.workers import Worker

T = TypeVar("T")
Dump = list[tuple[bytes, int, bytes]]
Where = Literal["tape", "queue"]
#: What becomes of a command; `partly`: of several in one round trip, the first few run, and the replies are lost.
Fate = Literal["runs", "request lost", "reply lost", "partly", "late"]

SCRIPTS: Final = (*tape.SCRIPTS, *queue.SCRIPTS, *ownership.SCRIPTS)
NAMESPACE: Final = "w"
START_MS: Final = 1_700_000_000_000
LEASE_MS: Final = 5_000
RENEWAL_MS: Final = 1_500
#: A job may fail so often before it does.
BUDGET: Final = 3
#: Chunks of a whole answer.
CHUNKS: Final = 3
#: A command that nobody waits for any more arrives after so long: some soon, some when much else has happened.
_LATE_MS: Final = (0, 30, 300, 2_000, 8_000)

_DATABASES: Final[dict[Where, int]] = {"tape": 0, "queue": 1}
_CLOCK_KEY: Final = "test:now"
_CLOCK: Final = (resources.files("tokentape") / "lua" / "_clock.lua").read_text("utf-8")
_TEST_CLOCK: Final = f"""
local function now_ms() return tonumber(redis.call('GET', '{_CLOCK_KEY}')) end
local function text(ms) return string.format('%.0f', ms) end
"""


class Violation(Exception):
    """An invariant does not hold."""


class Lost(Exception):
    """The connection broke: the command may have run, may run yet, or never will."""


class Stopped(Exception):
    """A process was told to stop, where it waited for something that it can be called away from."""


@dataclass(frozen=True)
class Pause:
    """Time passes."""

    ms: int


@dataclass(frozen=True)
class Soft:
    """A wait that `World.call_away` breaks off. What was sent may arrive nevertheless."""

    wait: Ask | Pause


@dataclass(frozen=True)
class Die:
    """The process takes its whole worker along."""


Waits = Generator[Ask | Pause | Soft | Die, Any, T]


@dataclass(frozen=True)
class Ablation:
    """One line of a script replaced, to see that the rule it holds is needed."""

    script: Script
    line: str
    instead: str = ""

    def of(self, script: Script, source: str) -> str:
        if script is not self.script:
            return source
        assert source.count(self.line) == 1, f"{script.name}.lua has changed: {self.line!r}"
        return source.replace(self.line, self.instead)


class Wire:
    """The way to the servers, as fast as Python goes: two databases of one server stand for two servers."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._connections = {where: self._connect(url, db) for where, db in _DATABASES.items()}
        self._variants: dict[str, str] = {}
        self.names = {script.sha: script.name for script in SCRIPTS}

    def _connect(self, url: str, db: int) -> Any:
        pool = redis.ConnectionPool.from_url(url)
        pool.connection_kwargs["db"] = db  # the URL names one too, and would win
        return pool.get_connection()

    def load(self, *ablations: Ablation) -> None:
        """Load the scripts with the world's clock, and with some rules taken out."""
        for script in SCRIPTS:
            source = script.plain.replace(_CLOCK, _TEST_CLOCK)
            for ablation in ablations:
                source = ablation.of(script, source)
            self._variants[script.sha] = str(self._client.script_load(source))

    def run(self, where: Where, commands: Sequence[Command]) -> list[Any]:
        """-> the replies as redis-py gives them, errors standing among them."""
        connection = self._connections[where]
        callbacks = self._client.response_callbacks
        sent = [(c[0], self._variants[c[1]], *c[2:]) if c[0] == "EVALSHA" else c for c in commands]
        connection.send_packed_command(connection.pack_commands(sent))
        replies: list[Any] = []
        for command in commands:
            try:
                reply = connection.read_response()
            except RedisError as error:
                replies.append(error)
                continue
            parse = callbacks.get(command[0])
            replies.append(parse(reply) if parse else reply)
        return replies

    def one(self, where: Where, *command: Any) -> Any:
        """One command's reply. Raises what the server refuses with."""
        (reply,) = self.run(where, [command])
        if isinstance(reply, Exception):
            raise reply
        return reply

    def dump(self, where: Where) -> Dump:
        """Every key, with what it is and how long it lives."""
        keys = [key for key in self.one(where, "KEYS", "*") if key != _CLOCK_KEY.encode()]
        values = self.run(where, [("DUMP", key) for key in keys])
        ttls = self.run(where, [("PTTL", key) for key in keys])
        return list(zip(keys, (max(0, ttl) for ttl in ttls), values, strict=True))

    def restore(self, where: Where, dump: Dump) -> None:
        self.run(where, [("FLUSHDB",), *(("RESTORE", *key) for key in dump)])

    def close(self) -> None:
        for connection in self._connections.values():
            connection.disconnect()
        self._client.close()


class Process:
    """One generator, and what it waits for now."""

    def __init__(self, name: str, steps: Waits[Any], worker: Worker | None) -> None:
        self.name = name
        self.worker = worker
        self.waits_for: Ask | Pause | Die | None = None
        self.soft = False
        self.wake_ms = 0
        self.done = False
        self.broken: set[Where] = set()
        self.haste = 0.5
        self._steps = steps

    def go_on(self, now_ms: int, *, reply: Any = None, error: Exception | None = None) -> None:
        """Run to the next wait."""
        try:
            wait = self._steps.send(reply) if error is None else self._steps.throw(error)
        except StopIteration:
            self.done, self.waits_for = True, None
            return
        self.soft = isinstance(wait, Soft)
        self.waits_for = wait.wait if isinstance(wait, Soft) else wait
        if isinstance(self.waits_for, Pause):
            self.wake_ms = now_ms + self.waits_for.ms

    def end(self) -> None:
        self.done, self.waits_for = True, None
        if (
            inspect.getgeneratorstate(self._steps) != inspect.GEN_RUNNING
        ):  # a process may be the one that ends its worker
            self._steps.close()


@dataclass
class Late:
    """A command under way that nobody waits for any more."""

    sender: str
    ask: Ask
    lands_at_ms: int


@dataclass
class World:
    """The state of one run. `rng` decides everything that is left to chance."""

    wire: Wire
    rng: random.Random
    now_ms: int = START_MS
    processes: list[Process] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    late: list[Late] = field(default_factory=list)
    trace: list[tuple[int, str, Any, Any]] = field(default_factory=list)
    #: Jobs whose submit has come through, and whose tape must end.
    submitted: set[str] = field(default_factory=set)
    #: What each job's next calls of upstream come to; beyond them, all is well.
    plans: dict[str, list[str]] = field(default_factory=dict)
    #: Which worker made which call, in which attempt.
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    #: What readers ended with: the text of the last attempt.
    read: dict[str, bytes] = field(default_factory=dict)
    #: How often something happened that may rightly spend an attempt, or cancel, or expire a job.
    happened: Counter[str] = field(default_factory=Counter)
    #: Servers that lost their last second.
    rolled_back: set[Where] = field(default_factory=set)
    refuse_append: int = 0
    chunks_kept_bytes: int = 64 * 1024
    _clock_told: dict[Where, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = Settings(namespace=NAMESPACE)
        self.keys = QueueKeys(NAMESPACE)
        self.operations = Operations(self.settings, one_server=False)
        for where in _DATABASES:
            self.wire.run(where, [("FLUSHDB",)])

    def tape(self, job_id: str) -> Tape:
        return Tape(NAMESPACE, job_id)

    # ---- commands

    def run(self, ask: Ask) -> list[Any]:
        """Run commands now."""
        clock: list[Command] = []
        if self._clock_told.get(ask.server) != self.now_ms:
            self._clock_told[ask.server] = self.now_ms
            clock = [("SET", _CLOCK_KEY, self.now_ms)]
        if self.refuse_append and self._is_append(ask):
            self.refuse_append -= 1
            return [OutOfMemoryError("OOM command not allowed when used memory > 'maxmemory'.")]
        return self.wire.run(ask.server, [*clock, *ask.commands])[len(clock) :]

    def look(self, where: Where, *command: Any) -> Any:
        """What an onlooker sees. No process is involved."""
        return self.wire.one(where, *command)

    def roll_back(self, where: Where, dump: Dump) -> None:
        """The server is as it was when the dump was taken. What readers had read to the end is read again."""
        self.wire.restore(where, dump)
        self.rolled_back.add(where)
        self._clock_told.pop(where, None)
        self.read.clear()

    def _is_append(self, ask: Ask) -> bool:
        return len(ask.commands) == 1 and ask.commands[0][1] == tape.APPEND.sha

    # ---- processes

    def spawn(self, name: str, steps: Waits[Any], worker: Worker | None = None) -> Process:
        process = Process(name, steps, worker)
        process.haste = self.rng.random()
        process.go_on(self.now_ms)
        if not process.done:
            self.processes.append(process)
        return process

    def kill(self, process: Process) -> None:
        """End a process where it stands. What it had sent may arrive later."""
        if not process.done:
            self._leave_under_way(process)
            process.end()

    def call_away(self, process: Process) -> None:
        """Break off a soft wait. What was sent may arrive nevertheless."""
        if not process.done and process.soft:
            self._leave_under_way(process)
            process.go_on(self.now_ms, error=Stopped())

    def _leave_under_way(self, process: Process) -> None:
        if isinstance(process.waits_for, Ask) and self.rng.random() < 0.5:
            self._delay(process.name, process.waits_for)

    def _delay(self, sender: str, ask: Ask) -> None:
        self.late.append(Late(sender, ask, self.now_ms + self.rng.choice(_LATE_MS)))

    def runnable(self) -> list[Process]:
        self.processes = [process for process in self.processes if not process.done]
        return [
            process
            for process in self.processes
            if not (process.worker and process.worker.frozen)
            and not (isinstance(process.waits_for, Pause) and process.wake_ms > self.now_ms)
        ]

    def pick(self) -> Process | None:
        """Who goes next: some processes are fast and some slow. Where all wait for time, time passes."""
        ready = self.runnable()
        if not ready:
            waiting = [p.wake_ms for p in self.processes if not (p.worker and p.worker.frozen)]
            if not waiting:
                return None
            self.now_ms = max(self.now_ms, min(waiting))
            ready = self.runnable()
        if self.rng.random() < 0.5:
            return self.rng.choice(ready)
        return min(self.rng.sample(ready, min(3, len(ready))), key=lambda process: process.haste)

    def step(self, process: Process, fate: Fate = "runs") -> None:
        """One process has what it waited for, or loses its connection over it."""
        wait = process.waits_for
        if isinstance(wait, Die):
            assert process.worker is not None
            self.note(process.name, "DIES OF ITS JOB")
            process.worker.crash()
        elif isinstance(wait, Ask):
            self._ask(process, wait, fate)
        else:
            process.go_on(self.now_ms)

    def _ask(self, process: Process, ask: Ask, fate: Fate) -> None:
        if ask.server in process.broken:
            process.broken.discard(ask.server)
            fate = "request lost"
        if fate == "partly" and len(ask.commands) < 2:
            fate = "reply lost"
        if fate == "late":
            self._delay(process.name, ask)
        replies: list[Any] = []
        if fate in ("runs", "reply lost"):
            replies = self.run(ask)
        elif fate == "partly":
            some = self.rng.randrange(1, len(ask.commands))
            replies = self.run(Ask(ask.server, ask.commands[:some]))
        self.note(process.name, ask, replies if fate == "runs" else (fate, replies))
        if fate == "runs":
            process.go_on(self.now_ms, reply=replies)
        else:
            process.go_on(self.now_ms, error=Lost())

    def land(self) -> None:
        """What was under way arrives, where its time has come."""
        arrived = [late for late in self.late if late.lands_at_ms <= self.now_ms]
        if arrived:
            self.late = [late for late in self.late if late.lands_at_ms > self.now_ms]
            self.rng.shuffle(arrived)
        for late in arrived:
            self.note(late.sender, late.ask, ("arrives late", self.run(late.ask)))

    # ---- the trace

    def note(self, who: str, what: Any, reply: Any = None) -> None:
        self.trace.append((self.now_ms, who, what, reply))

    def story(self, last: int = 250) -> str:
        """The trace as text."""
        lines = []
        for moment, who, what, reply in self.trace[-last:]:
            said = self._said(what) if isinstance(what, Ask) else str(what)
            answer = "" if reply is None else f" -> {_shortened(texts(reply))}"
            lines.append(f"{(moment - START_MS) / 1000:9.3f} {who:14} {said}{answer}")
        return "\n".join(lines).replace("0" * 30, "")

    def _said(self, ask: Ask) -> str:
        return "; ".join(
            f"{self.wire.names[c[1]]}({', '.join(_shortened(texts(part), 24) for part in c[3 + c[2] :][:7])})"
            if c[0] == "EVALSHA"
            else f"{c[0]} {c[1]}"
            for c in ask.commands
        )


def _shortened(value: Any, most: int = 160) -> str:
    text = str(value)
    return text if len(text) <= most else text[: most - 1] + "…"
