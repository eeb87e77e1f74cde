"""Owners to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .owner import Owner


@pytest.fixture
def start_owner(server_binary: Path | None) -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def start(*, data: Path | None = None, then: str = "") -> Owner:
        owners.append(Owner(server_binary, data, then))
        return owners[-1]

    yield start
    for owner in owners:
        owner.close()
