"""What a translation cannot say: refused, or dropped and remembered."""

from __future__ import annotations

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

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that were left out, as paths (`tools.0.type`)."""
        return tuple(self._fields)
