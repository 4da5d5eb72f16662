"""A recording as comma-separated values: a line an event; arrays as numbered columns, 64-bit registers and addresses in
hexadecimal, which spreadsheets leave as they are.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from gdbext.events.row import Batch, How, Kind
from gdbext.recording.schema import columns, view

_COUNTED: Final = frozenset({"seq", "time", "match"})
"""64-bit columns that number something: no addresses or register values."""
_NAMED: Final = {"kind": Kind.NAMES, "how": How.NAMES}


class CsvWriter:
    """Writes batches as CSV with a header line; a context manager. Raises OSError."""

    def __init__(self, out: BinaryIO, simd: bool) -> None:
        self._columns = columns(simd)
        self._schema = pa.schema(
            [
                (column.name if column.length == 1 else f"{column.name}{place}", _type(column.name, column.dtype))
                for column in self._columns
                for place in range(column.length)
            ]
        )
        self._writer = csv.CSVWriter(out, self._schema, write_options=csv.WriteOptions(quoting_style="none"))

    def write(self, batch: Batch) -> None:
        """Add a batch."""
        arrays = []
        for column in self._columns:
            values = view(batch, column).reshape(len(batch), column.length)
            arrays += [_cells(column.name, values[:, place]) for place in range(column.length)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))

    def __enter__(self) -> CsvWriter:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._writer.close()


def _type(name: str, dtype: np.dtype[Any]) -> pa.DataType:
    hexadecimal = dtype.itemsize == 8 and name not in _COUNTED
    return pa.string() if hexadecimal or name in _NAMED else pa.from_numpy_dtype(dtype)


def _cells(name: str, values: npt.NDArray[Any]) -> pa.Array:
    """One column's values as they stand in the file."""
    if name in _NAMED:
        names = _NAMED[name]
        return pa.array([names.get(value, str(value)) for value in values.tolist()], pa.string())
    if values.dtype.itemsize == 8 and name not in _COUNTED:
        return _hex(values)
    return pa.array(np.ascontiguousarray(values))


def _hex(values: npt.NDArray[Any]) -> pa.Array:
    """``0x`` and sixteen digits each, without a Python step per value."""
    digits = np.frombuffer(values.astype(">u8").tobytes().hex().encode(), np.uint8).reshape(-1, 16)
    text = np.empty((len(values), 18), np.uint8)
    text[:, 0], text[:, 1], text[:, 2:] = ord("0"), ord("x"), digits
    offsets = np.arange(len(values) + 1, dtype=np.int32) * 18
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(text))
