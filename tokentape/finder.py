"""Finds the server that nothing names, for the command line: the one that `tokentape up` runs, see endpoint.py.

The command line puts a Finder in `finder`, and Settings.load asks it where neither the environment nor the file names a
server. An application sets none, so it never looks. The file itself is looked at by endpoint.py, which is imported when
it is needed: help needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .endpoint import Endpoint

#: Answers with the settings of a server that nothing names; nobody looks unless it is set.
finder: Final[ContextVar[Callable[[], Mapping[str, str]]]] = ContextVar("finder", default=dict)


#: Whoever sets one of them has a server of their own.
_NAMING: Final = ("redis_url", "tape_url", "redis_password_file")


def found(environ: Mapping[str, str] | None, values: Mapping[str, object]) -> dict[str, str]:
    """What to add to `values` where they name no server; nothing where `environ` is given, which is all then."""
    if environ is not None or not values.keys().isdisjoint(_NAMING):
        return {}
    return {name: value for name, value in finder.get()().items() if name not in values}


class Finder:
    """Looks for an endpoint once, when first asked, and remembers what it found.

    `tell` is told why a file that is there is not gone by. `path`: the file; None is where `tokentape up` puts it.
    """

    def __init__(self, tell: Callable[[str], None], path: Path | None = None) -> None:
        self._tell = tell
        self._path = path
        self._asked = False
        #: What was found, and why a file that is there was ignored. Both None before the first question.
        self.endpoint: Endpoint | None = None
        self.ignored: str | None = None

    def __call__(self) -> dict[str, str]:
        """The settings of the endpoint; none where there is none. Safe to repeat."""
        if not self._asked:
            self._asked = True
            self._look()
        return self.endpoint.settings() if self.endpoint else {}

    def _look(self) -> None:
        from . import endpoint  # noqa: PLC0415 - see above

        self._path = self._path or endpoint.default_path()
        try:
            self.endpoint = endpoint.find(self._path)
        except endpoint.EndpointUnusable as error:
            self.ignored = str(error)
            self._tell(self.ignored)

    @property
    def source(self) -> str:
        """What the settings came from, for messages."""
        process = f" (process {self.endpoint.pid})" if self.endpoint else ""
        return f"`tokentape up`{process} by {self._path}"
