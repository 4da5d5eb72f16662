"""Opening a recording, whatever its format and however much of it there is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import pyarrow as pa

from gdbext.errors import RecordingError
from gdbext.events.columns import Columns
from gdbext.events.row import Batch
from gdbext.recording import leftover, parquet
from gdbext.recording.ahead import ahead
from gdbext.recording.apart import joined
from gdbext.recording.header import Header
from gdbext.recording.leftover import LeftoverFile
from gdbext.recording.mark import Mark, Unit
from gdbext.recording.memory import RecordedGuest
from gdbext.recording.parquet import ParquetFile
from gdbext.recording.stream import StreamFile

_ARROW_FILE = b"ARROW1"
TOGETHER: Final = 65_536
"""Events that are handed out in one batch at most, unless more were recorded in one: each batch costs the rules what
two thousand events do."""


class _File(Protocol):
    """A recording's file, in whichever of the forms it may have."""

    header: Header
    simd: bool
    schema: pa.Schema
    flaw: str | None
    end: Mark | None

    def units(self) -> Iterator[tuple[Columns, Mark]]:
        """Every batch of events with its mark, in order; then ``end`` or ``flaw`` is set."""

    def index(self) -> list[Unit]:
        """Every batch's place and mark, in order."""

    def batch(self, unit: Unit) -> Batch:
        """The events of one unit of the index; raises RecordingError where they are damaged."""

    def close(self) -> None:
        """Close the file; idempotent."""


class Recording:
    """One recording, read from the start.

    guest: what the rules may ask of the guest, as known at the events delivered so far.  threaded: decode the next
    batch while the last is judged; inside GDB, whose signals may come in any thread, no.  Raises RecordingError where
    the file is no recording, naming it and the likely cause.
    """

    def __init__(self, path: Path, threaded: bool = False) -> None:
        self.path = path
        self._threaded = threaded
        self.guest = RecordedGuest()
        fd = _open(path)
        try:
            self._file: _File = _reader(fd)(path, fd)
        except RecordingError as error:
            os.close(fd)
            if str(path) in error.what:  # a ring's refusal names it already
                raise
            why = ": ".join(filter(None, (error.what, error.why)))
            raise RecordingError(f"{path} cannot be read", why, error.todo) from error

    @property
    def header(self) -> Header:
        """What the recording says of itself."""
        return self._file.header

    @property
    def simd(self) -> bool:
        """Whether its rows hold SIMD state."""
        return self._file.simd

    @property
    def flaw(self) -> str | None:
        """Why reading ended before the recording did, in one clause; None before that and for a whole recording."""
        return self._file.flaw

    @property
    def end(self) -> Mark | None:
        """The last mark, with the live run's result; None until it was reached, or if there is none."""
        return self._file.end

    def units(self) -> Iterator[tuple[Batch, Mark]]:
        """Each batch with its mark; ``guest`` knows what the mark brings when they are delivered."""
        for batch, mark in self._file.units():
            self.guest.learn(mark)
            yield batch.rows, mark
        self._learn_end()

    def batches(self) -> Iterator[Batch]:
        """Each batch of events, in order."""
        for batch in self.columns():
            yield batch.rows

    def columns(self) -> Iterator[Columns]:
        """The same, for whom columns will do: small batches put together, but not where an answer of ``guest`` to one
        of them is another than to the one before."""
        waiting: list[Columns] = []
        units = self._file.units()
        for batch, mark in ahead(units) if self._threaded else units:
            rows = sum(map(len, waiting), len(batch))
            if waiting and (rows > TOGETHER or self.guest.answered_otherwise(mark)):
                yield joined(waiting)
                waiting = []
            self.guest.learn(mark)
            waiting += [batch] if len(batch) else []
        if waiting:
            yield joined(waiting)
        self._learn_end()

    def _learn_end(self) -> None:
        if self.end is not None:
            self.guest.learn(self.end)

    def index(self) -> list[Unit]:
        """Each batch's place and mark, for reading out of order; ``guest`` then knows all that was captured.

        Batches are not checked before they are read; ``flaw`` says what is known to be missing.
        """
        found = self._file.index()
        for unit in found:
            self.guest.learn(unit.mark)
        return [unit for unit in found if unit.mark.rows]

    def batch(self, unit: Unit) -> Batch:
        """The events of one batch of the index; raises RecordingError where they are damaged."""
        try:
            return self._file.batch(unit)
        except RecordingError as error:
            raise RecordingError(f"{self.path} cannot be read", str(error)) from error

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reader(fd: int) -> type[ParquetFile] | type[StreamFile] | type[LeftoverFile]:
    begins = os.pread(fd, 8, 0)
    if begins == leftover.MAGIC:
        return LeftoverFile
    return ParquetFile if begins[:4] == parquet.MAGIC else StreamFile


def _open(path: Path) -> int:
    """Open a regular file that is not empty; raises RecordingError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RecordingError(f"{path} cannot be read", error.strerror or str(error)) from error
    about = os.fstat(fd)
    why, todo = "", ""
    if stat.S_ISDIR(about.st_mode):
        why = "it is a directory"
    elif not stat.S_ISREG(about.st_mode):
        why, todo = "it is no regular file", "recordings are read more than once: copy it into a file first"
    elif about.st_size == 0:
        why, todo = "it is empty", "the recorder died before the first event"
    elif os.pread(fd, len(_ARROW_FILE), 0) == _ARROW_FILE:
        why, todo = "it is an Arrow IPC file, not a stream", "give it the recording itself"
    if why:
        os.close(fd)
        raise RecordingError(f"{path} cannot be read", why, todo)
    return fd
