"""A recording as a Parquet file: the same columns; header and marks in the file's metadata, marks as one JSON list.

Each mark covers the next ``rows`` events of the file and holds a checksum of them, for Parquet's own leave gaps.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gdbext.errors import RecordingError
from gdbext.events.row import Batch, empty
from gdbext.recording import header as headers
from gdbext.recording import mark as marks
from gdbext.recording import schema as columns
from gdbext.recording.header import Header
from gdbext.recording.mark import Mark

MARKS_KEY: Final = b"ctxwatch.marks"
SUM_KEY: Final = b"ctxwatch.sum"
MAGIC: Final = b"PAR1"
_READ: Final = 32_768
_BAD: Final = (pa.ArrowException, ValueError, OSError, KeyError, TypeError, OverflowError, MemoryError)


class ParquetWriter:
    """Writes a recording's units as Parquet. ``end``: the last mark, None where the recording is incomplete."""

    def __init__(self, path: Path, header: Header, simd: bool) -> None:
        self._schema = columns.schema(simd, header.metadata())
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", write_page_checksum=True)
        self._marks: list[Mark] = []

    def write(self, rows: Batch, mark: Mark) -> None:
        """Add a batch of events and its mark."""
        if len(rows):
            self._writer.write_batch(columns.to_arrow(rows, self._schema))
        self._marks.append(mark)
        mark.content = zlib.crc32(rows.tobytes())

    def close(self, end: Mark | None) -> None:
        """Add the metadata that is known only now, and finish the file."""
        marks = [*self._marks, end] if end is not None else self._marks
        text = json.dumps([mark.document() for mark in marks])
        self._writer.add_key_value_metadata({MARKS_KEY: text, SUM_KEY: f"{zlib.crc32(text.encode()):08x}"})
        self._writer.close()


class ParquetFile:
    """The units of a Parquet file, as :class:`gdbext.recording.stream.StreamFile` gives those of a stream."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.flaw: str | None = None
        self.end: Mark | None = None
        self._source = os.fdopen(fd, "rb")
        try:
            self._file = pq.ParquetFile(self._source, page_checksum_verification=True)
            self.schema = self._file.schema_arrow
            metadata: dict[bytes, bytes] = dict(self._file.metadata.metadata or {})
        except _BAD as error:
            self.close()
            raise RecordingError("it is cut off or damaged, or no Parquet file", str(error).splitlines()[0]) from error
        self.header = headers.parse(metadata)
        self.simd = columns.check(self.schema)
        self._marks = _marks(metadata)

    def units(self) -> Iterator[tuple[Batch, Mark]]:
        """Every batch of events with its mark, in order; then ``end`` or ``flaw`` is set."""
        rows = _Rows(self._batches(), self.simd)
        try:
            for mark in self._marks:
                if mark.end is not None:
                    self.end = mark
                    break
                batch = rows.take(mark.rows)
                if mark.content != zlib.crc32(batch.tobytes()):
                    raise RecordingError(f"it is damaged between events {mark.first} and {mark.last}")
                yield batch, mark
            else:
                self.flaw = "it was made from a recording that was not finished"
        except RecordingError as error:
            self.flaw = str(error)

    def close(self) -> None:
        """Close the file; idempotent."""
        self._source.close()

    def _batches(self) -> Iterator[Batch]:
        try:
            for record in self._file.iter_batches(batch_size=_READ):
                yield columns.from_arrow(_plain(record, self.schema))
        except _BAD as error:
            raise RecordingError("it is damaged", str(error).splitlines()[0]) from error


class _Rows:
    """Rows taken in the numbers asked for, whatever the batches they come in."""

    def __init__(self, batches: Iterable[Batch], simd: bool) -> None:
        self._batches = iter(batches)
        self._left = empty(0, simd)

    def take(self, count: int) -> Batch:
        parts = [self._left[:count]]
        got = len(parts[0])
        self._left = self._left[count:]
        while got < count:
            batch = next(self._batches, None)
            if batch is None:
                raise RecordingError("it is damaged: events are missing")
            parts.append(batch[: count - got])
            self._left = batch[count - got :]
            got += len(parts[-1])
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _plain(record: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Without the validity bitmaps that the Parquet reader may add; raises RecordingError where values are missing."""
    if any(array.null_count for array in record.columns):
        raise RecordingError("it is damaged: values are missing")
    return pa.record_batch(record.columns, schema=schema)


def _marks(metadata: dict[bytes, bytes]) -> list[Mark]:
    text = metadata.get(MARKS_KEY)
    if text is None or metadata.get(SUM_KEY) != b"%08x" % zlib.crc32(text):
        raise RecordingError("it is damaged: what it says of the run is missing or not what was written")
    found: Any = json.loads(text)
    return [marks.parse(mark) for mark in found]
