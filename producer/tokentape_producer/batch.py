"""A batch run: every line of an input becomes one job, and every job one line of output or errors. Exactly one.

    check the input ─▶ open the files, read back what is answered ─▶ submit and collect, a window at a time ─▶ sync

Why a run can be killed at any point and started again:

- The id of a line's job is derived from the batch and the line's number. Submitting it again is the same job: one that
  is queued or running is joined, one that has ended is fetched.
- A line is answered when its result line stands in the files, and only then; the next run reads that back.
- What belongs to a job in Redis is let go only after its line is on the disk.

The batch's identity is the input's content and the options that change answers (upstream, model), or a name that it was
given. The completion window begins with the first run; jobs get what is left of it as their timeout, and lines that had
no turn when it closes are answered as expired.

Asking again (`retry_failed`): a line that stands in the errors is asked as a job of another id, which says for which
time it is asked; so does the result line. The earlier answer stays where it is until a later one is on the disk:

    in the errors ─▶ under way again ─▶ the later answer is written, too ─▶ it is on the disk ─▶ the earlier is removed

A run that is killed before the later answer is written leaves the line as failed, and the next one that asks again
joins its job: it is asked for the same time. A run that is killed after that leaves the line twice, and the next one,
whether it asks again or not, takes the later answer and removes the earlier, as every run does at its end. At no moment
does a line stand nowhere, and each stands once whenever a run has ended by itself. Where lines are asked again the
window begins with the run that asks: the one before may be what they expired of.

A run holds nine bytes for each line (a checksum, what became of it, how often it was asked), and the flights. One
thread does everything, in turns: submit some, collect some. A service can run many batches, each in a thread.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from redis.exceptions import OutOfMemoryError

from tokentape.errors import IdempotencyConflict, RedisUnavailable, TokentapeError
from tokentape.job import ChatJob, ErrorInfo, Priority, canonical_json

from .collector import Collector, Outcome
from .flights import Departure, Flight, Flights, departures
from .input_file import Checked, InputFile
from .lines import Line
from .output_files import BatchConflict, OutputFiles
from .results import VERDICTS, Verdict
from .servers import OUTAGE_WAIT_S, Servers

DEFAULT_WINDOW: Final = 2000
DEFAULT_TIMEOUT_S: Final = 86_400.0

#: How often results are made durable. A killed process loses nothing by it, only a killed machine does.
_SYNC_EVERY_S: Final = 1.0
#: How often the flights are looked at one by one, for each thousand of them.
_LOOK_EVERY_S: Final = 2.0
#: How long to wait after a turn in which nothing moved; grows from the first to the second.
_PAUSES_S: Final = (0.01, 0.2)
#: How often a job whose tape vanished is submitted again.
_MOST_LOSSES: Final = 3
#: How long to wait before a server whose memory is full is asked again.
_FULL_PAUSE_S: Final = 1.0


class Stopped(Exception):
    """The run was asked to stop. Running the same batch again goes on where it was."""


class Observer(Protocol):
    """Whoever wants to see how a run goes."""

    def counted(self, counts: Counts) -> None:
        """How far it is; called every turn."""

    def noted(self, text: str) -> None:
        """Something that a person may want to act on; called again and again while it holds."""


@dataclass
class Counts:
    """Lines by what became of them. `total` is how many there are to answer."""

    total: int
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    in_flight: int = 0
    #: By this run, those included that an earlier one had submitted.
    submitted: int = 0

    @property
    def begun(self) -> bool:
        """Whether anything has come of the batch: something is answered, or under way."""
        return self.answered > 0 or self.submitted > 0

    @property
    def answered(self) -> int:
        return self.completed + self.failed + self.cancelled + self.expired

    def add(self, verdict: Verdict, count: int = 1) -> None:
        setattr(self, verdict, getattr(self, verdict) + count)


@dataclass(frozen=True)
class Options:
    """How a batch is run.

    `timeout_s` counts from the first run; `keep` leaves jobs their whole retention; `retry_failed` asks the lines again
    that stand in the errors.
    """

    upstream: str | None = None
    priority: Priority = "low"
    window: int = DEFAULT_WINDOW
    timeout_s: float = DEFAULT_TIMEOUT_S
    keep: bool = False
    retry_failed: bool = False


def identity(input_sha256: str, *, upstream: str | None, model: str | None) -> str:
    """The id of a batch that was given none: the same input with the same options is the same batch."""
    options = canonical_json({"input": input_sha256, "upstream": upstream, "model": model})
    return f"batch_{hashlib.sha256(options).hexdigest()[:32]}"


class Batch:
    """One run of one batch, for one thread. Input, files and servers stay the caller's to close.

    `stop` is asked between turns. Raises BatchConflict where the files hold another batch's lines.
    """

    def __init__(
        self,
        source: InputFile,
        checked: Checked,
        files: OutputFiles,
        servers: Servers,
        options: Options,
        *,
        observer: Observer,
        stop: Callable[[], bool],
    ) -> None:
        self._source = source
        self._checked = checked
        self._files = files
        self._servers = servers
        self._options = options
        self._observer = observer
        self._stop = stop
        self._collector = Collector(servers)
        begins_at = time.time() if options.retry_failed else files.record.started_at
        self._closes_at = begins_at + options.timeout_s
        self.counts = Counts(checked.requests)
        #: For each line by its number: what became of it, as a place in VERDICTS from 1 on, or 0.
        self._answered = bytearray(len(checked.checksums))
        #: For how many times of asking it was answered.
        self._asked = array("I", bytes(4 * len(checked.checksums)))
        #: Whether answers stand in the errors that later ones have taken the place of.
        self._outdated = False
        self._read_back()
        self._tidy()
        if options.retry_failed:
            self._forget_errors()
        self._flights = Flights(options.window)
        self._first_time = departures(self._from_input(), self._flights.step)
        self._lost: deque[Flight] = deque()
        #: Held until it is submitted: the server may have no room for it yet.
        self._departing: Departure | None = None
        #: Completed jobs whose lines may not be on the disk yet.
        self._written: list[str] = []
        self._sync_at = self._look_at = self._submit_at = 0.0
        self._full_since: float | None = None

    def run(self) -> Counts:
        """Go on until every line is answered. To be repeated as a new Batch on the same files, as often as need be.

        Raises Stopped, RedisUnavailable, InvalidRequest (an upstream that nobody knows), BadInput (the input was
        changed), BatchConflict, OutputUnwritable. What was answered until then stands.
        """
        try:
            self._run()
        finally:
            self._files.sync()
            self._tidy()
        # Everything is answered and on the disk: what is left to do is a courtesy to the server, and not worth a wait.
        self._servers.patience_s = self._servers.settings.redis_wait_s
        try:
            self._let_go()
        except RedisUnavailable as error:
            self._observer.noted(f"{error}; what is left of the batch there goes with the retention")
        return self.counts

    def cancel(self) -> None:
        """Instead of run(): end what is under way. Its lines are answered by that, and those whose jobs had ended.

        With `retry_failed` also what is under way of the lines that stand in the errors.
        """
        self._servers.reach()
        try:
            for departure in self._first_time:
                gone = set(self._collector.cancel([job.id for job, _ in departure]))
                for job, flight in departure:
                    if job.id not in gone:
                        self._flights.add(flight)
                self._collect(self._flights.ids())
        finally:
            self._files.sync()
            self._tidy()

    def _run(self) -> None:
        self._observer.counted(self.counts)
        if self.counts.answered == self.counts.total:
            return
        self._prepare()
        pause_s = _PAUSES_S[0]
        while self.counts.answered < self.counts.total:
            if self._stop():
                raise Stopped
            if self._turn():
                pause_s = _PAUSES_S[0]
            else:
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, _PAUSES_S[1])

    def _prepare(self) -> None:
        self._servers.reach()
        if self._options.upstream is not None:
            self._servers.drive(self._servers.operations.check_upstream(self._options.upstream))
        self._collector.begin()
        self._look_at = time.monotonic() + _LOOK_EVERY_S

    def _turn(self) -> bool:
        """Submit some, collect some. -> whether anything moved"""
        departed = self._depart()
        landed = self._collect(self._collector.newly_ended(self._flights))
        if time.monotonic() >= self._look_at:
            self._look_around()
        if time.monotonic() >= self._sync_at:
            self._files.sync()
            self._let_go()
            self._sync_at = time.monotonic() + _SYNC_EVERY_S
        self.counts.in_flight = len(self._flights)
        self._observer.counted(self.counts)
        return departed or landed

    @property
    def _closed(self) -> bool:
        """Whether the completion window is over."""
        return time.time() >= self._closes_at

    # ---- what there is to do

    def _read_back(self) -> None:
        """What earlier runs have answered: of each line the answer to the last time that it was asked."""
        for one in self._files.read_back():
            number = one.number
            known = 0 < number < len(self._asked)
            before = self._asked[number] if known else 0
            # The output is read first, and a completed line is not asked again.
            completed = known and self._answered[number] == 1
            if not known or one.asked == before or (completed and (one.asked > before or one.verdict == "completed")):
                raise BatchConflict(
                    f"{self._files.out.path}, {self._files.errors.path}: line {number} of the input is answered twice, "
                    "or does not exist; move the files away"
                )
            self._outdated |= before > 0
            if one.asked > before:
                self._note(number, one.verdict, one.asked)

    def _note(self, number: int, verdict: Verdict, asked: int) -> None:
        """A line is answered, or answered anew."""
        if self._answered[number]:
            self.counts.add(VERDICTS[self._answered[number] - 1], -1)
        self.counts.add(verdict)
        self._answered[number] = VERDICTS.index(verdict) + 1
        self._asked[number] = asked

    def _forget_errors(self) -> None:
        """Lines that stand in the errors are to be asked again."""
        for number, place in enumerate(self._answered):
            if place > 1:
                self.counts.add(VERDICTS[place - 1], -1)
                self._answered[number] = 0

    def _tidy(self) -> None:
        if self._outdated:
            self._files.tidy(lambda one: one.asked == self._asked[one.number])
            self._outdated = False

    def _from_input(self) -> Iterator[tuple[ChatJob, Flight]]:
        for offset, size, line in self._source.lines(self._checked, self._answered):
            job = self._job(line)
            yield job, Flight(job.id, line.number, line.custom_id, offset, size)

    def _job(self, line: Line) -> ChatJob:
        batch_id = self._files.record.batch_id
        before = self._asked[line.number]
        return ChatJob.create(
            line.request,
            tenant=f"batch:{batch_id}",
            # Another one for each time of asking, as the job of the time before has ended.
            idempotency_key=f"{batch_id}:{line.number}" + (f":{before + 1}" if before else ""),
            upstream=self._options.upstream,
            priority=self._options.priority,
            # Past the window the job is not submitted, but has an id.
            timeout_s=max(1.0, self._closes_at - time.time()),
            metadata={"batch_id": batch_id, "line": str(line.number), "custom_id": line.custom_id},
        )

    def _next_departure(self) -> Departure | None:
        if not self._lost:
            return next(self._first_time, None)
        lost = [self._lost.popleft() for _ in range(min(len(self._lost), self._flights.step))]
        lines = (self._source.line_at(self._checked, flight.number, flight.offset) for flight in lost)
        return [(self._job(line), flight) for line, flight in zip(lines, lost, strict=True)]

    # ---- submit

    def _depart(self) -> bool:
        """Submit one group, if there is one and there is room. -> whether it was"""
        if time.monotonic() < self._submit_at or not self._flights.has_room():
            return False
        self._departing = self._departing or self._next_departure()
        if self._departing is None:
            return False
        departure = self._departing
        if self._closed:
            self._turn_away(departure)
        elif not self._submit([job for job, _ in departure]):
            return False
        else:
            self.counts.submitted += len(departure)
            for _, flight in departure:
                self._flights.add(flight)
        self._departing = None
        # What an earlier run submitted may have ended before this one began to read what ends.
        self._collect([job.id for job, _ in departure if job.id in self._flights])
        return True

    def _submit(self, jobs: list[ChatJob]) -> bool:
        """-> False where the server's memory is full: to be tried again later."""
        try:
            self._servers.drive(self._servers.operations.submit(jobs, fresh=False))
        except IdempotencyConflict as error:
            batch_id = self._files.record.batch_id
            raise BatchConflict(
                f"a batch with the id {batch_id!r} was run before, with other lines; give this one another --batch-id"
            ) from error
        except TokentapeError as error:
            if not isinstance(error.__cause__, OutOfMemoryError):
                raise
            now = time.monotonic()
            self._full_since = self._full_since or now
            # Once lines were submitted, the memory is more likely full for a while than too small.
            wait_s = OUTAGE_WAIT_S if self.counts.submitted else self._servers.settings.redis_wait_s
            if not self._flights and now - self._full_since > wait_s:  # nothing of ours there could make room
                raise RedisUnavailable(str(error)) from error
            self._submit_at = now + _FULL_PAUSE_S
            self._observer.noted("the Redis server's memory is full: no more lines are submitted until there is room")
            return False
        self._full_since = None
        return True

    def _turn_away(self, departure: Departure) -> None:
        """The window has closed: what was never submitted has expired; what an earlier run submitted is collected."""
        never = set(self._collector.expire_overdue([job.id for job, _ in departure]))
        for job, flight in departure:
            if job.id in never:
                self._expire(flight)
            else:
                self._flights.add(flight)

    # ---- collect

    def _collect(self, job_ids: list[str]) -> bool:
        """Write down what has ended of these. -> whether anything has"""
        moved = False
        for outcome in self._collector.outcomes(job_ids):
            self._land(self._flights.pop(outcome.job_id), outcome)
            moved = True
        return moved

    def _land(self, flight: Flight, outcome: Outcome) -> None:
        lines, number, custom_id, job_id = self._files.lines, flight.number, flight.custom_id, flight.job_id
        end, asked = outcome.end, self._asked[flight.number] + 1
        if end is None:
            self._lose(flight)
        elif outcome.result is not None:
            self._answer(flight, "completed", lines.completed(number, custom_id, job_id, outcome.result, asked=asked))
            self._written.append(job_id)
        elif end.status == "expired":
            self._expire(flight)
        elif end.status == "cancelled":
            self._answer(flight, "cancelled", lines.cancelled(number, custom_id, end, asked=asked))
        else:
            error = end.error or ErrorInfo(type=end.status, message="no reason was recorded")
            self._answer(flight, "failed", lines.failed(number, custom_id, job_id, error, asked=asked))

    def _lose(self, flight: Flight) -> None:
        """The tape is gone (evicted, flushed, lost in a failover): the job is run again, but not for ever."""
        flight.losses += 1
        if self._closed:
            self._expire(flight)
        elif flight.losses > _MOST_LOSSES:
            asked = self._asked[flight.number] + 1
            self._answer(flight, "failed", self._files.lines.lost(flight.number, flight.custom_id, asked=asked))
        else:
            self._lost.append(flight)

    def _expire(self, flight: Flight) -> None:
        asked = self._asked[flight.number] + 1
        self._answer(flight, "expired", self._files.lines.expired(flight.number, flight.custom_id, asked=asked))

    def _answer(self, flight: Flight, verdict: Verdict, line: bytes) -> None:
        (self._files.out if verdict == "completed" else self._files.errors).write(line)
        before = self._asked[flight.number]
        self._outdated |= before > 0
        self._note(flight.number, verdict, before + 1)

    def _look_around(self) -> None:
        """Look at every flight, whatever the set of ended jobs says, and at whether anybody works on them."""
        flying = self._flights.ids()
        if self._closed:
            self._collector.expire_overdue(flying)
        self._collect(flying)
        if self._flights and not self._collector.workers():
            self._observer.noted("no worker is running: start one with `tokentape worker`")
        self._look_at = time.monotonic() + max(1.0, len(flying) / 1000) * _LOOK_EVERY_S

    def _let_go(self) -> None:
        """Shorten the life of what is in the files. Call it after a sync."""
        if self._written and not self._options.keep:
            queue = self._servers.operations.keys.queue_name(self._options.priority)
            try:
                self._collector.let_go(self._written, queue)
            except TokentapeError as error:
                if not isinstance(error.__cause__, OutOfMemoryError):
                    raise
                return  # the next time: what was shortened before that makes room
        self._written = []
