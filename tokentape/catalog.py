"""What upstreams there are, as a client knows them: what the workers announce, and what its own settings configure.

A client needs no upstreams of its own to submit. But what it asks for should be refused at once where it cannot work:
an upstream that nobody serves, and a request that the upstream's dialect cannot say (see translation). Where nobody
knows, or where several upstreams with different rules may serve a model, the worker decides, and the job fails with
the same words.

The `default` that stands in settings where nobody configured any says nothing of the workers: it counts while no worker
has announced itself.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import InvalidRequest
from .job import ChatJob
from .settings import Settings
from .tape import text_of
from .translation import Dialect, translate


class Served(BaseModel):
    """One upstream, as a worker announces it: no address, no key."""

    model_config = ConfigDict(frozen=True)

    models: tuple[str, ...] = ("*",)
    dialect: Dialect = "openai"
    drop_unsupported: bool = False
    seen_at: int = 0


class Catalog:
    """The upstreams by name."""

    def __init__(self, settings: Settings, announced: Mapping[Any, Any]) -> None:
        self._own = {
            name: Served(models=one.models, dialect=one.dialect, drop_unsupported=one.drop_unsupported)
            for name, one in settings.upstreams.items()
            if not announced or one.model_fields_set
        }
        self._announced: dict[str, Served] = {}
        for name, value in announced.items():
            try:
                self._announced[text_of(name)] = Served.model_validate_json(text_of(value))
            except ValidationError:  # another version's: its name counts
                self._announced[text_of(name)] = Served()

    def knows(self, job: ChatJob) -> bool:
        """Whether the upstream that a job names is here. One may have come since this catalog was read."""
        return job.upstream is None or job.upstream in self._announced or job.upstream in self._own

    def named(self, name: str) -> Served:
        """One upstream. Raises InvalidRequest, with the names that there are, where nobody knows it."""
        one = self._announced.get(name) or self._own.get(name)
        if one is None:
            known = ", ".join(sorted({*self._announced, *self._own}))
            raise InvalidRequest(f"no upstream {name!r} is configured; known: {known}", field="upstream")
        return one

    def check(self, job: ChatJob) -> None:
        """Raise InvalidRequest for an upstream that nobody serves, or a request that it cannot be asked."""
        served = self._announced or self._own
        if job.upstream is not None:
            one = self.named(job.upstream)
            candidates = {(one.dialect, one.drop_unsupported)}
        else:
            model = str(job.request["model"])
            candidates = {(one.dialect, one.drop_unsupported) for one in served.values() if model in one.models}
            candidates = candidates or {
                (one.dialect, one.drop_unsupported)
                for one in served.values()
                if any(fnmatch.fnmatchcase(model, pattern) for pattern in one.models)
            }
        if len(candidates) == 1:
            ((dialect, drop_unsupported),) = candidates
            if dialect != "openai":
                translate(dialect, job.request, native=job.native, drop_unsupported=drop_unsupported)
