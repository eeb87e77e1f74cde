"""The jobs of a batch that are under way: a window, counted in jobs and in bytes of requests.

It bounds what the run keeps in memory, and what stands in Redis for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from tokentape.job import ChatJob

#: Requests under way at most; one that is larger flies alone.
WINDOW_BYTES: Final = 256 * 1024 * 1024
#: Jobs, and bytes of requests, that are submitted in one transaction.
DEPARTURE_JOBS: Final = 250
DEPARTURE_BYTES: Final = 4 * 1024 * 1024


@dataclass(slots=True)
class Flight:
    """A line whose job is under way. `offset` is where the line begins, `losses` how often its tape has vanished."""

    job_id: str
    number: int
    custom_id: str
    offset: int
    size: int
    losses: int = 0


#: Jobs that are submitted together, with their lines.
Departure = list[tuple[ChatJob, Flight]]


class Flights:
    """What is under way, by job id."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._by_id: dict[str, Flight] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._by_id

    def __getitem__(self, job_id: str) -> Flight:
        return self._by_id[job_id]

    def ids(self) -> list[str]:
        return list(self._by_id)

    @property
    def step(self) -> int:
        """How many depart together."""
        return min(DEPARTURE_JOBS, self._window)

    def has_room(self) -> bool:
        """Whether another departure fits."""
        return not self._by_id or (len(self) + self.step <= self._window and self._bytes < WINDOW_BYTES)

    def add(self, flight: Flight) -> None:
        self._by_id[flight.job_id] = flight
        self._bytes += flight.size

    def pop(self, job_id: str) -> Flight:
        flight = self._by_id.pop(job_id)
        self._bytes -= flight.size
        return flight


def departures(flights: Iterable[tuple[ChatJob, Flight]], step: int) -> Iterator[Departure]:
    """Group what is to depart, at most `step` jobs and DEPARTURE_BYTES at a time."""
    departure: Departure = []
    size = 0
    for job, flight in flights:
        departure.append((job, flight))
        size += flight.size
        if len(departure) == step or size >= DEPARTURE_BYTES:
            yield departure
            departure, size = [], 0
    if departure:
        yield departure
