"""What a translation cannot say: refused, or dropped and remembered."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tokentape.errors import InvalidRequest


class Drops:
    """Collects the fields of one request that were left out. `dropping`: the upstream's `drop_unsupported`."""

    def __init__(self, dropping: bool = False) -> None:
        self._dropping = dropping
        self._fields: list[str] = []

    def unsupported(self, field: str, why: str) -> None:
        """A field has no counterpart. Raises InvalidRequest that names it, or takes note that it is left out."""
        if not self._dropping:
            raise InvalidRequest(f"{why} (drop_unsupported of the upstream would leave it out)", field=field)
        if field not in self._fields:
            self._fields.append(field)

    def beyond(self, known: Collection[str], value: Mapping[str, Any], field: str) -> None:
        """The same for whatever an object holds beside the fields that are known. A null asks for nothing."""
        for name, inner in value.items():
            if inner is not None and name not in known:
                self.unsupported(f"{field}.{name}", "the upstream's API has no counterpart")

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that were left out, as paths (`tools.0.type`)."""
        return tuple(self._fields)
