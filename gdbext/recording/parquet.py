"""A recording as a Parquet file: the same columns; header and marks in the file's metadata, marks as one JSON list.

Each mark that covers events has a row group of its own, and a checksum of its rows, for Parquet's own leave gaps.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gdbext.errors import RecordingError
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, empty
from gdbext.recording import header as headers
from gdbext.recording import mark as marks
from gdbext.recording import schema as columns
from gdbext.recording.header import Header
from gdbext.recording.mark import Mark, Unit

MAGIC: Final = b"PAR1"
ROWS: Final = 32_768
"""Events in a row group, about."""
_MARKS_KEY: Final = b"ctxwatch.marks"
_SUM_KEY: Final = b"ctxwatch.sum"
_BAD: Final = (pa.ArrowException, ValueError, OSError, KeyError, TypeError, OverflowError, MemoryError)
"""What Arrow raises on data that is not what it says."""


class ParquetWriter:
    """Writes a recording's units as Parquet; raises OSError."""

    def __init__(self, out: BinaryIO, header: Header, simd: bool) -> None:
        self._schema = columns.schema(simd, header.metadata())
        self._writer = pq.ParquetWriter(out, self._schema, compression="zstd", write_page_checksum=True)
        self._waiting: list[Batch] = []
        self._mark = Mark()
        self._marks: list[Mark] = []

    def write(self, rows: Batch, mark: Mark) -> None:
        """Add a batch of events and its mark; small ones are put together."""
        if self._mark.rows and self._mark.rows + mark.rows > ROWS:
            self._flush()
        if mark.rows:
            first = self._mark.first if self._mark.rows else mark.first
            self._waiting.append(rows)
            self._mark.rows += mark.rows
            self._mark.first, self._mark.last = min(first, mark.first), max(self._mark.last, mark.last)
        self._mark.memory |= mark.memory
        self._mark.names |= mark.names

    def close(self, end: Mark | None) -> None:
        """Add what is known only now and finish the file. `end`: the last mark; None: the recording is incomplete."""
        self._flush()
        found = [*self._marks, end] if end is not None else self._marks
        text = json.dumps([mark.document() for mark in found])
        self._writer.add_key_value_metadata({_MARKS_KEY: text, _SUM_KEY: f"{zlib.crc32(text.encode()):08x}"})
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            rows = np.concatenate(self._waiting)
            self._writer.write_batch(columns.to_arrow(rows, self._schema), row_group_size=len(rows))
            self._mark.content = zlib.crc32(rows.tobytes())
        self._marks.append(self._mark)
        self._waiting, self._mark = [], Mark()


class ParquetFile:
    """The units of a Parquet file, as :class:`gdbext.recording.stream.StreamFile` gives those of a stream."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.flaw: str | None = None
        self.end: Mark | None = None
        self._fd = fd
        try:
            # The file object must not close it: where we raise, our caller does, and the number may be another's then.
            source = os.fdopen(fd, "rb", closefd=False)
            self._file = pq.ParquetFile(source, page_checksum_verification=True)
            self.schema = self._file.schema_arrow
            metadata: dict[bytes, bytes] = dict(self._file.metadata.metadata or {})
            groups = self._file.metadata.num_row_groups
        except _BAD as error:
            raise RecordingError("it is cut off or damaged, or no Parquet file", _first_line(error)) from error
        self.header = headers.parse(metadata)
        self.simd = columns.check(self.schema)
        self._marks = _marks(metadata)
        if groups != sum(1 for mark in self._marks if mark.rows):
            raise RecordingError("it is damaged: row groups are missing")

    def units(self) -> Iterator[tuple[Columns, Mark]]:
        """Every batch of events with its mark, in order; then ``end`` or ``flaw`` is set."""
        try:
            for unit in self.index():
                yield Columns(self.batch(unit)), unit.mark
        except RecordingError as error:
            self.flaw = str(error)

    def index(self) -> list[Unit]:
        """Every batch's place and mark, in order; sets ``end`` or ``flaw``."""
        found: list[Unit] = []
        group = 0
        for mark in self._marks:
            found.append(Unit(group if mark.rows else None, mark))
            group += mark.rows > 0
        if found and found[-1].mark.end is not None:
            self.end = found[-1].mark
        else:
            self.flaw = "it was made from a recording that was not finished"
        return found

    def batch(self, unit: Unit) -> Batch:
        """The events of one unit of the index; raises RecordingError where they are damaged."""
        if unit.place is None:
            return empty(0, self.simd)
        try:
            table = self._file.read_row_group(unit.place).combine_chunks()
            (record,) = table.to_batches() or [None]
            if record is None or any(array.null_count for array in record.columns):
                raise ValueError("values are missing")
            rows = columns.from_arrow(pa.record_batch(record.columns, schema=self.schema))
        except _BAD as error:
            raise RecordingError(
                f"it is damaged between events {unit.mark.first} and {unit.mark.last}", _first_line(error)
            ) from error
        if unit.mark.content != zlib.crc32(rows.tobytes()):
            raise RecordingError(
                f"it is damaged between events {unit.mark.first} and {unit.mark.last}", "a checksum is wrong"
            )
        return rows

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _marks(metadata: dict[bytes, bytes]) -> list[Mark]:
    text = metadata.get(_MARKS_KEY)
    if text is None or metadata.get(_SUM_KEY) != b"%08x" % zlib.crc32(text):
        raise RecordingError("it is damaged: what it says of the run is missing or not what was written")
    found: Any = json.loads(text)
    return [marks.parse(mark) for mark in found]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
