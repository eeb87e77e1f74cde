"""The endpoint file: how the commands of this user find the server that `tokentape up` runs.

    $XDG_RUNTIME_DIR/tokentape/endpoint.json      or /run/user/UID/…, or tokentape-UID/ where temporary files go

It holds the server's address with its password, so the folder has mode 0700 and the file 0600; both are believed only
where they belong to this user and nobody else can touch them, since any user may make a folder in /tmp.

`up` holds a lock on the file for as long as it lives. The kernel lets go of it when the process is gone, by whatever
signal, which is how a reader knows a file that was left behind: the process id in it may be another process's by now.
The file is written elsewhere, locked, and then moved into its place, so that nobody reads half of it, or an unlocked
one. The first of two that run at once is the one that is found.

Only the `tokentape` command looks here, and only where neither TOKENTAPE_REDIS_URL, TOKENTAPE_TAPE_URL nor the
configuration file names a server. An application that imports `tokentape` never does.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from .errors import TokentapeError

FILE_NAME: Final = "endpoint.json"
#: A reader that does not know the number lets the file be.
FORMAT: Final = 1
_MAX_BYTES: Final = 65_536


class EndpointUnusable(TokentapeError):
    """There is an endpoint file, and it is not to be gone by. The message says why, and which file."""


@dataclass(frozen=True)
class Endpoint:
    """Where a running `tokentape up` can be reached."""

    #: With its password.
    redis_url: str = field(repr=False)
    namespace: str
    #: Of `tokentape up`.
    pid: int

    def settings(self) -> dict[str, str]:
        """The settings that it stands for."""
        return {"redis_url": self.redis_url, "namespace": self.namespace}


def default_path() -> Path:
    """Where this user's endpoint file stands, whether or not there is one."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_absolute():
        return Path(runtime, "tokentape", FILE_NAME)
    user = os.getuid()
    usual = Path(f"/run/user/{user}")
    if usual.is_dir():  # a shell without a login session, as after su
        return usual / "tokentape" / FILE_NAME
    try:
        scratch = tempfile.gettempdir()
    except FileNotFoundError:  # nothing can be written anywhere; there may be something to read all the same
        scratch = "/tmp"  # noqa: S108 - believed only where nobody else can touch it
    return Path(scratch, f"tokentape-{user}", FILE_NAME)


class Publication:
    """The endpoint file of this process. Keep it, and `remove` it at the end; the kernel ends it otherwise."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def make(cls, endpoint: Endpoint, path: Path | None = None) -> Self:
        """Write the file. Raises EndpointUnusable where another `up` has one, or where it would not be safe."""
        path = path or default_path()
        try:
            _make_private(path.parent)
            if (other := _read(path)) is not None:
                raise EndpointUnusable(f"{path} belongs to another `tokentape up` (process {other.pid})")
        except _Stale:
            pass  # replaced
        except OSError as error:
            raise EndpointUnusable(f"{path} cannot be written ({error.strerror})") from error
        try:
            return cls(path, _write(path, endpoint))
        except OSError as error:
            raise EndpointUnusable(f"{path} cannot be written ({error.strerror})") from error

    def remove(self) -> None:
        """Take the file away, unless another process has replaced it. Safe to repeat."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), self.path.lstat()):
                self.path.unlink()
        os.close(descriptor)


def find(path: Path | None = None) -> Endpoint | None:
    """The endpoint of the `tokentape up` that runs; None where there is no file.

    Raises EndpointUnusable for a file whose process has ended, that is not this user's alone, or that cannot be read.
    """
    if sys.platform == "win32":
        return None
    try:
        return _read(path or default_path())
    except OSError as error:
        raise EndpointUnusable(f"{path or default_path()} cannot be read ({error.strerror})") from error


class _Stale(EndpointUnusable):
    """The process that wrote it is gone."""


def _make_private(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    _check_private(folder, folder.lstat())


def _check_private(path: Path, found: os.stat_result) -> None:
    """Raise EndpointUnusable unless it is this user's, and nobody else's."""
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or stat.S_ISLNK(found.st_mode):
        raise EndpointUnusable(f"{path} is ignored: it must belong to this user alone (mode 0700, the file 0600)")


def _write(path: Path, endpoint: Endpoint) -> int:
    """Put the file in its place. -> a descriptor that holds the lock on it"""
    descriptor, name = tempfile.mkstemp(prefix=f".{FILE_NAME}.", dir=path.parent)  # mode 0600
    try:
        _lock(descriptor, exclusive=True)
        os.write(descriptor, json.dumps({"format": FORMAT, **asdict(endpoint)}).encode() + b"\n")
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return descriptor


def _read(path: Path) -> Endpoint | None:
    """See `find`. Raises OSError too."""
    try:
        _check_private(path.parent, path.parent.lstat())
        # A pipe that somebody put there must not hold us.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        _check_private(path, os.fstat(descriptor))
        endpoint = _parse(os.read(descriptor, _MAX_BYTES))
        if _lock(descriptor, exclusive=False):
            process = f" (process {endpoint.pid})" if endpoint else ""
            raise _Stale(f"{path} is ignored: the `tokentape up` that left it{process} has ended")
        if endpoint is None:
            raise EndpointUnusable(f"{path} is ignored: another version of tokentape wrote it")
        return endpoint
    finally:
        os.close(descriptor)


def _parse(content: bytes) -> Endpoint | None:
    """None for what this version does not understand."""
    try:
        facts: dict[str, Any] = json.loads(content)
        if facts["format"] == FORMAT:
            return Endpoint(str(facts["redis_url"]), str(facts["namespace"]), int(facts["pid"]))
    except (ValueError, TypeError, LookupError):
        pass
    return None


def _lock(descriptor: int, *, exclusive: bool) -> bool:
    """Take the lock if nobody else has it. -> whether it is ours now"""
    import fcntl  # noqa: PLC0415 - not on Windows, where the other commands work all the same

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
