"""Lua scripts: found, given their prelude, and run wherever a server stands.

A script runs by its SHA-1. A server that does not know it (new, restarted, failed over) answers NOSCRIPT: the
scripts are loaded and the call is made again, which is safe because each of ours may be repeated.

Scripts that must run on a server whose memory is full carry `#!lua flags=allow-oom` (Redis 7, Valkey). Servers without
that notion refuse the line, Redis 6 when it is loaded, fakeredis when it is run: they get the script without it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Final

from redis.exceptions import NoScriptError, ResponseError

ALLOW_OOM: Final = "#!lua flags=allow-oom\n"

Command = tuple[Any, ...]


@dataclass(frozen=True)
class Script:
    """One Lua script. `plain` is the source for servers that refuse the flags line."""

    name: str
    plain: str
    allow_oom: bool = False
    sha: str = field(init=False)
    plain_sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest())
        object.__setattr__(self, "plain_sha", hashlib.sha1(self.plain.encode(), usedforsecurity=False).hexdigest())

    @property
    def source(self) -> str:
        """What is loaded where the flags line is understood."""
        return (ALLOW_OOM if self.allow_oom else "") + self.plain

    def call(self, keys: tuple[str, ...] | list[str], *args: Any) -> Command:
        """The command that runs it, for any connection or pipeline."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)


def load(package: str, name: str, *preludes: str, allow_oom: bool = False) -> Script:
    """The script `lua/<name>.lua` of a package, after its preludes (`name`, or `package/name` of another package)."""
    parts = []
    for part in (*preludes, name):
        owner, _, stem = part.rpartition("/")
        parts.append((resources.files(owner or package) / "lua" / f"{stem}.lua").read_text("utf-8"))
    return Script(name, "".join(parts), allow_oom)


class Dialect:
    """What one server understands: whether the flags line may stand. Shared by all connections to it."""

    def __init__(self, scripts: tuple[Script, ...]) -> None:
        self.scripts = scripts
        self._plain = False

    def adapt(self, commands: list[Command]) -> list[Command]:
        """The commands as this server takes them."""
        if not self._plain:
            return commands
        plain = {script.sha: script.plain_sha for script in self.scripts if script.allow_oom}
        return [(c[0], plain.get(c[1], c[1]), *c[2:]) if c[0] == "EVALSHA" else c for c in commands]

    def wants_loading(self, replies: list[Any]) -> bool:
        """Whether scripts have to be loaded, and the commands with these replies sent again."""
        if not self._plain and any(_refuses_flags(reply) for reply in replies):
            self._plain = True
            return True
        return any(isinstance(reply, NoScriptError) for reply in replies)

    def loading(self) -> list[Command]:
        """The commands that load every script."""
        return [("SCRIPT", "LOAD", script.plain if self._plain else script.source) for script in self.scripts]

    def loaded(self, replies: list[Any]) -> bool:
        """Judge the replies to `loading`: False means load again, now without the flags line."""
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        if not errors:
            return True
        if self._plain or not all(isinstance(error, ResponseError) for error in errors):
            raise errors[0]
        self._plain = True
        return False


def _refuses_flags(reply: Any) -> bool:
    return isinstance(reply, ResponseError) and "unexpected symbol near '#'" in str(reply)
