"""A batch's files: output, errors, and the record of which batch they belong to.

    OUT.jsonl           completed lines
    OUT.errors.jsonl    the others (or where `--errors` says)
    OUT.jsonl.batch     the record: which batch, begun when; stays, so that a batch that is over is known as such

Both result files are locked (flock) for as long as a run has them open: a second run is refused. Each line is one
write to the end of the file, so that a killed process leaves at most one torn line, which the next run cuts off; its
job has ended by then, so that the line is fetched again, not run again. `sync` makes what was written durable: before
it, nothing that could bring a result back may be thrown away.

Lines are only ever added, with one exception: where a line that stands in the errors was asked again and answered, the
earlier answer is removed once the later one is on the disk, by a new file in the place of the old (`tidy`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from tokentape.errors import InvalidRequest
from tokentape.exit_codes import OutputFailed

from .results import Answered, ResultLines

_BLOCK: Final = 64 * 1024
#: Folders of names for what is open already.
_DEVICES: Final = ("/dev", "/dev/fd")


class BatchConflict(InvalidRequest):
    """The result files hold something else, or another run has them. Nothing was changed."""


class OutputUnwritable(OutputFailed, OSError):
    """A result file cannot be written. What was written stands; the same command goes on from there."""


class BatchRecord(BaseModel):
    """What `OUT.jsonl.batch` says. `started_at` is seconds since the epoch: the completion window begins there."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    batch_id: str
    input_sha256: str
    upstream: str | None
    model: str | None
    errors: str
    started_at: float

    def difference(self, other: BatchRecord) -> str | None:
        """In words, why the two are not records of one batch; None where they are."""
        if self.input_sha256 != other.input_sha256:
            return "the input file had another content"
        for name in ("batch_id", "upstream", "model", "errors"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name.replace('_', ' ')} was {theirs!r}, now it is {mine!r}"
        return None


class ResultFile:
    """One JSONL file that is appended to, under a lock. Raises BatchConflict where another run holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # A run that was killed may have written what is not on the disk yet.
        self._dirty = True
        try:
            self._made = not path.exists()
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise BatchConflict(f"{path} cannot be opened for writing: {error.strerror}") from error
        try:
            self._lock()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._taken() from error
        except OSError as error:
            raise BatchConflict(f"{self.path} cannot be locked: {error.strerror}") from error
        try:
            # Another run may have removed the file after it was opened here, and before it was locked.
            if not os.path.samestat(os.fstat(self._fd), self.path.stat()):
                raise self._taken()
        except OSError as error:
            raise self._taken() from error

    def _taken(self) -> BatchConflict:
        return BatchConflict(f"{self.path} is being written by another run of this batch")

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def write(self, line: bytes) -> None:
        """Append one line; it survives the death of this process, and from `sync` on that of the machine."""
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise self._unwritable(error) from error
        self._dirty = True

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        if self._dirty:
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise self._unwritable(error) from error
            self._dirty = False

    def cut_torn_line(self) -> None:
        """Cut off what stands after the last line end."""
        end = size = self.size
        while end > 0:
            begin = max(0, end - _BLOCK)
            newline = os.pread(self._fd, end - begin, begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        if end < size:
            os.ftruncate(self._fd, end)
            self._dirty = True

    def lines(self) -> Iterator[bytes]:
        """What stands in the file, line by line."""
        with self.path.open("rb") as file:
            yield from file

    def rewrite(self, keep: Callable[[bytes], bool]) -> None:
        """Leave out the lines that are not to be kept, as a whole or not at all."""
        target = Path(os.path.realpath(self.path))
        try:
            new = ResultFile(target.parent / f"{target.name}.new")
        except BatchConflict as error:
            raise OutputUnwritable(str(error)) from error
        try:
            new.become(self, target, keep)
        except BaseException:
            new.close()
            with contextlib.suppress(OSError):
                new.path.unlink(missing_ok=True)
            raise
        # It was locked before it got its name.
        os.close(self._fd)
        self._fd = new._fd
        try:  # only now: whatever becomes of it, what is written from here on goes into the file that has the name
            _sync_folder(target.parent)
        except OSError as error:
            raise self._unwritable(error) from error

    def become(self, old: ResultFile, target: Path, keep: Callable[[bytes], bool]) -> None:
        """Take the place of another one, with those of its lines that are to be kept."""
        try:
            os.ftruncate(self._fd, 0)
            os.fchmod(self._fd, stat.S_IMODE(target.stat().st_mode))
        except OSError as error:
            raise self._unwritable(error) from error
        for line in filter(keep, old.lines()):
            self.write(line)
        self.sync()
        try:
            self.path.replace(target)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OutputUnwritable:
        return OutputUnwritable(f"{self.path} cannot be written: {error.strerror}")

    def withdraw(self) -> None:
        """Remove the file where this run has made it, and nothing stands in it."""
        if self._made and not self.size:
            Path(os.path.realpath(self.path)).unlink(missing_ok=True)

    def close(self) -> None:
        """Close, and give up the lock. Safe to repeat."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class OutputFiles:
    """The files of one batch, open and locked. `record` is the one that stands: the first run's."""

    def __init__(self, out: Path, errors: Path, record: BatchRecord) -> None:
        self.lines = ResultLines(record.batch_id)
        check_place(out)
        check_place(errors)
        self._record_path = record_path(out)
        #: Whether this run has written the record.
        self._begins = False
        fresh = not out.exists()
        self.out = ResultFile(out)
        try:
            self.errors = ResultFile(errors)
        except BaseException:
            self.out.close()
            raise
        try:
            self.record = self._settle_record(record, fresh)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close without waiting for the disk; see `sync`. Safe to repeat."""
        self.out.close()
        self.errors.close()

    def withdraw(self) -> None:
        """Leave nothing behind of a batch that this run was to begin, and that nothing has come of."""
        if self._begins and not self.out.size and not self.errors.size:
            with contextlib.suppress(OSError):
                # The record last: without an output it means nothing.
                for file in (self.out, self.errors):
                    file.withdraw()
                self._record_path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        self.out.sync()
        self.errors.sync()

    def read_back(self) -> Iterator[Answered]:
        """What earlier runs answered. Cuts torn last lines first. Raises BatchConflict for a line of something else."""
        readers: tuple[tuple[ResultFile, Callable[[bytes], Answered | None]], ...] = (
            (self.out, self.lines.read_output),
            (self.errors, self.lines.read_error),
        )
        for file, read in readers:
            file.cut_torn_line()
            for number, line in enumerate(file.lines(), 1):
                answered = read(line)
                if answered is None:
                    raise BatchConflict(f"{file.path}: line {number} was not written by this batch; move the file away")
                yield answered

    def tidy(self, stands: Callable[[Answered], bool]) -> None:
        """Remove from the errors the answers that a later one has taken the place of; that is on the disk first."""
        self.sync()
        self.errors.rewrite(lambda line: (answered := self.lines.read_error(line)) is not None and stands(answered))

    def _settle_record(self, record: BatchRecord, fresh: bool) -> BatchRecord:
        """The record that stands, written where none does."""
        before = read_record(self.out.path)
        held = [file.path for file in (self.out, self.errors) if file.size]
        if before is not None and not (fresh and not held):
            difference = record.difference(before)
            if difference is None:
                return before
            raise BatchConflict(
                f"{self.out.path} belongs to another batch: {difference}. Choose another --out, or move it and "
                f"{self._record_path.name} away"
            )
        if held:
            raise BatchConflict(
                f"{held[0]} stands there already, and {self._record_path.name} does not say that it belongs to this "
                "batch. Choose another file, or move it away"
            )
        self._write_record(record)
        self._begins = True
        return record

    def _write_record(self, record: BatchRecord) -> None:
        """As a whole or not at all, and on the disk before anything is enqueued."""
        new = self._record_path.with_name(f"{self._record_path.name}.new")
        try:
            with new.open("wb") as file:
                file.write(record.model_dump_json(indent=2).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._record_path)
            _sync_folder(self._record_path.parent)
        except OSError as error:
            raise OutputUnwritable(f"{self._record_path} cannot be written: {error.strerror}") from error


def _sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_place(path: Path) -> None:
    """Whether results can stand there, as far as a look tells: a regular file, or none yet. Raises BatchConflict.

    The record is written beside them, so that /dev/stdout is no place either, though it may lead to a regular file.
    """
    why = "results are read back when a batch is resumed: give a file"
    if str(path) == "-":
        raise BatchConflict(f"{path} is not a file: {why}")
    folder = os.path.realpath(path.parent)
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        regular = True
    except OSError as error:
        raise BatchConflict(f"{path} cannot be opened for writing: {error.strerror}") from error
    if not regular or folder in _DEVICES or folder.startswith("/proc/"):
        raise BatchConflict(f"{path} is not a regular file: {why}")


def record_path(out: Path) -> Path:
    """Where the record of an output file stands."""
    return out.parent / f"{out.name}.batch"


def read_record(out: Path) -> BatchRecord | None:
    """The record of an output file, None where there is none. Raises BatchConflict for one that cannot be read."""
    path = record_path(out)
    try:
        return BatchRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise BatchConflict(f"{path} cannot be read; move it and {out} away") from error


def default_errors(out: Path) -> Path:
    """`OUT.errors.jsonl` for `OUT.jsonl`."""
    return out.parent / f"{out.stem}.errors{out.suffix or '.jsonl'}"


def new_record(
    out: Path, errors: Path, *, batch_id: str, input_sha256: str, upstream: str | None, model: str | None
) -> BatchRecord:
    """The record of a batch that begins now. The place of the errors is told relative to the output's."""
    return BatchRecord(
        batch_id=batch_id,
        input_sha256=input_sha256,
        upstream=upstream,
        model=model,
        # A name need not be text; JSON must be.
        errors=os.fsencode(os.path.relpath(errors.absolute(), out.absolute().parent)).decode(errors="backslashreplace"),
        started_at=time.time(),
    )
