"""Reading the Arrow stream of a recording, unit by unit: a batch of events and the mark behind it.

A unit's bytes are checked before they are decoded; what cannot be trusted is not delivered.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa

from gdbext.errors import RecordingError
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, empty
from gdbext.recording import header as headers
from gdbext.recording import mark as marks
from gdbext.recording import schema as columns
from gdbext.recording.framing import Frame, frame_at
from gdbext.recording.mark import Mark, Unit

MAX_ROWS: Final = 1 << 20
"""Events in a batch at most: more would be no recording of ours."""
_BAD: Final = (pa.ArrowException, ValueError, OSError, KeyError, TypeError, OverflowError, MemoryError)
"""What Arrow raises on data that is not what it says."""
_AT_ONCE: Final = pa.ipc.IpcReadOptions(use_threads=False)
"""Handing columns to threads takes more of the processor in all, and longer where there is but one."""


class StreamFile:
    """The units of an Arrow IPC stream. ``flaw``: why reading ended before the recording did, once it has.

    Raises RecordingError where it is no recording.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.flaw: str | None = None
        self.end: Mark | None = None
        self._fd = fd
        self._size = os.fstat(fd).st_size
        frame = frame_at(fd, 0, self._size)
        if frame is None:
            raise RecordingError("it is an empty Arrow stream")
        self._head = self._bytes(frame)
        try:
            self.schema = pa.ipc.read_schema(pa.BufferReader(self._head))
        except _BAD as error:
            raise RecordingError("it is not an Arrow stream", _first_line(error)) from error
        self.header = headers.parse(self.schema.metadata)
        self.simd = columns.check(self.schema)
        self._first = frame.end

    def units(self) -> Iterator[tuple[Columns, Mark]]:
        """Every batch of events with its mark, in order; then ``end`` or ``flaw`` is set."""
        for unit in self._units(skip=False):
            try:
                yield self._rows(unit), unit.mark
            except RecordingError as error:
                self.flaw = str(error)
                return

    def index(self) -> list[Unit]:
        """Every batch's place and mark, in order, the batches themselves unread and unchecked."""
        return list(self._units(skip=True))

    def batch(self, unit: Unit) -> Batch:
        """The events of one unit of the index; raises RecordingError where they are damaged."""
        return self._rows(unit).rows

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _units(self, skip: bool) -> Iterator[Unit]:
        at, first = self._first, True
        try:
            while True:
                frames = self._unit_at(at)
                before = b"" if skip else self._head * first + b"".join(map(self._bytes, frames[:-1]))
                mark = self._mark(frames[-1], None if skip else zlib.crc32(before))
                yield Unit(frames[0].start if len(frames) > 1 else None, mark)
                if mark.end is not None:
                    self.end = mark
                    return
                at, first = frames[-1].end, False
        except RecordingError as error:
            self.flaw = str(error)

    def _unit_at(self, at: int) -> list[Frame]:
        """The messages of the unit at byte `at`: a batch and a mark, or the last mark."""
        if at >= self._size:
            raise RecordingError("it was not finished: the recorder was killed, or is still at work")
        first = frame_at(self._fd, at, self._size)
        if first is None:
            raise RecordingError(f"it is damaged: the stream ends at byte {at} without the run's result")
        if not first.body:
            return [first]
        second = frame_at(self._fd, first.end, self._size)
        if second is None:
            raise RecordingError(f"it is damaged: the batch at byte {at} has no mark")
        return [first, second]

    def _mark(self, frame: Frame, sum_before: int | None) -> Mark:
        raw = self._bytes(frame)
        try:
            with self._reader(raw) as reader:
                metadata = reader.read_next_batch_with_custom_metadata().custom_metadata
                found = marks.from_metadata(dict(metadata or {}), sum_before)
        except (*_BAD, StopIteration) as error:
            raise RecordingError(f"it is damaged at byte {frame.start}", _first_line(error)) from error
        except RecordingError as error:
            raise RecordingError(f"it is damaged before byte {frame.end}", str(error)) from error
        if found is None:
            raise RecordingError(f"it is damaged: there is no mark at byte {frame.start}")
        return found

    def _rows(self, unit: Unit) -> Columns:
        if unit.place is None:
            return Columns(empty(0, self.simd))
        frame = frame_at(self._fd, unit.place, self._size)
        if frame is None:
            raise RecordingError(f"there is no batch at byte {unit.place}")
        try:
            with self._reader(self._bytes(frame)) as reader:
                record = reader.read_next_batch()
            record.validate(full=True)
        except (*_BAD, StopIteration) as error:
            raise RecordingError(f"the batch at byte {unit.place} is damaged", _first_line(error)) from error
        if record.num_rows != unit.mark.rows or record.num_rows > MAX_ROWS:
            raise RecordingError(f"the batch at byte {unit.place} is damaged")
        return columns.apart(record)

    def _reader(self, message: bytes) -> pa.RecordBatchStreamReader:
        """A reader of one message. The C library's memory is that which :mod:`gdbext.events.heap` keeps at hand."""
        source = pa.BufferReader(self._head + message)
        return pa.ipc.open_stream(source, options=_AT_ONCE, memory_pool=pa.system_memory_pool())

    def _bytes(self, frame: Frame) -> bytes:
        data = os.pread(self._fd, frame.end - frame.start, frame.start)
        if len(data) != frame.end - frame.start:
            raise RecordingError(f"it is cut off at byte {frame.start + len(data)}")
        return data


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
