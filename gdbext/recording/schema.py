"""The event row as Arrow columns, and back, without a Python step per row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gdbext.errors import RecordingError
from gdbext.events.columns import Columns
from gdbext.events.row import FIELDS, ROW, SIMD, X87_REGISTERS, XMM_REGISTERS, Batch, empty
from gdbext.recording.apart import Apart

CHUNK: Final = 1024
"""Rows converted at once: they fit in the second-level cache, which every column walks through again."""
ENDLESS: Final = 1 << 63
"""Neither events nor nanoseconds are counted so far."""
_COUNTED: Final = ("seq", "time")
_UNITS: Final = {"time": "ns", "size": "bytes", "mode": "bits"}
_SIMD_FIELDS: Final = (
    ("xmm", 2 * XMM_REGISTERS, "XMM registers as pairs of words, low word first, when Flag.SIMD"),
    ("x87", 2 * X87_REGISTERS, "x87 registers, 80 bits in two words each, when Flag.SIMD"),
    ("fctrl", 1, "x87 control word"),
    ("fstat", 1, "x87 status word"),
)


class Column(NamedTuple):
    """One column: where its values lie in a row, and what they mean."""

    name: str
    dtype: np.dtype[Any]
    length: int
    offset: int
    doc: str


def _columns() -> Iterator[Column]:
    assert ROW.fields is not None
    assert SIMD.fields is not None
    for field in FIELDS:
        yield Column(field.name, np.dtype(field.numpy), field.length, ROW.fields[field.name][1], field.doc)
    for name, length, doc in _SIMD_FIELDS:
        yield Column(name, np.dtype("<u8"), length, ROW.itemsize + SIMD.fields[name][1], doc)


_ALL: Final = tuple(_columns())
_PLAIN: Final = _ALL[: len(FIELDS)]


def columns(simd: bool) -> tuple[Column, ...]:
    """The columns of a recording with or without SIMD state, in order."""
    return _ALL if simd else _PLAIN


def has_simd(schema: pa.Schema) -> bool:
    """Whether the recording of this schema holds SIMD state."""
    return _SIMD_FIELDS[0][0] in schema.names


def schema(simd: bool, metadata: dict[str, str] | None = None) -> pa.Schema:
    """The Arrow schema: each field documented, arrays as lists of fixed size."""
    fields = []
    for column in columns(simd):
        about = {"doc": column.doc} | ({"unit": _UNITS[column.name]} if column.name in _UNITS else {})
        fields.append(pa.field(column.name, _type(column), nullable=False, metadata=about))
    return pa.schema(fields, metadata)


def check(found: pa.Schema) -> bool:
    """Raise RecordingError unless the columns are ours by name, order and type; return whether SIMD is among them."""
    try:
        simd = has_simd(found)
    except UnicodeDecodeError as error:
        raise RecordingError("the name of a column is not text", "the file is damaged") from error
    for column, field in zip(columns(simd), found, strict=False):
        if field.name != column.name or field.type != _type(column):
            raise RecordingError(
                f"column {field.name!r} of type {field.type} is not what a recording has there",
                f"{column.name} of type {_type(column)} is",
            )
    if len(found) != len(columns(simd)):
        raise RecordingError(f"it has {len(found)} columns instead of {len(columns(simd))}")
    return simd


def to_arrow(batch: Batch, schema: pa.Schema) -> pa.RecordBatch:
    """The rows of `batch` as an Arrow record batch."""
    spec = columns(has_simd(schema))
    count = len(batch)
    strided = [view(batch, column) for column in spec]
    whole = [np.empty(values.shape, values.dtype) for values in strided]
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        for target, values in zip(whole, strided, strict=True):
            target[part] = values[part]
    return pa.record_batch([_array(v, c) for v, c in zip(whole, spec, strict=True)], schema=schema)


def from_arrow(record: pa.RecordBatch) -> Batch:
    """The rows of an Arrow record batch that passed :func:`check`."""
    simd = has_simd(record.schema)
    batch = empty(record.num_rows, simd)
    pairs = []
    for array, column in zip(record.columns, columns(simd), strict=True):
        pairs.append((view(batch, column), _values(array, column)))
    for start in range(0, record.num_rows, CHUNK):
        part = slice(start, start + CHUNK)
        for target, values in pairs:
            target[part] = values[part]
    return batch


def apart(record: pa.RecordBatch) -> Columns:
    """The columns of an Arrow record batch that passed :func:`check`, not copied where they can be used as they are."""
    if has_simd(record.schema):
        return Columns(from_arrow(record))
    pairs = zip(record.columns, _PLAIN, strict=True)
    return Apart(ROW, {column.name: _values(array, column) for array, column in pairs})


def _values(array: pa.Array, column: Column) -> npt.NDArray[Any]:
    """The column's values where they lie; raises RecordingError where some are missing.

    By way of its buffer: PyArrow's own conversions, this way and the other, first import pandas where that is
    installed, and more of itself, which takes longer than reading a second of a guest.
    """
    flat = array.values if column.length > 1 else array
    if array.null_count or flat.null_count:
        raise RecordingError(f"values of column {column.name} are missing")
    if not len(array):
        return np.zeros((0, column.length)[: 1 + (column.length > 1)], column.dtype)
    first = flat.offset + (array.offset * column.length if flat is not array else 0)
    data = flat.buffers()[1]
    values = np.frombuffer(data, column.dtype, len(array) * column.length, first * column.dtype.itemsize)
    if column.name in _COUNTED and values.max() >= ENDLESS:
        raise RecordingError(f"column {column.name} holds {values.max()}: nothing counts so far")
    return values.reshape(-1, column.length) if column.length > 1 else values


def view(batch: Batch, column: Column) -> npt.NDArray[Any]:
    """The column inside the rows, not copied: one value a row, or (rows, length)."""
    shape = (len(batch), column.length)[: 1 + (column.length > 1)]
    if not len(batch):
        return np.zeros(shape, column.dtype)
    strides = (batch.strides[0], column.dtype.itemsize)[: len(shape)]
    return np.ndarray(shape, column.dtype, batch, column.offset, strides)


def _type(column: Column) -> pa.DataType:
    kind = pa.from_numpy_dtype(column.dtype)
    return pa.list_(kind, column.length) if column.length > 1 else kind


def _array(values: npt.NDArray[Any], column: Column) -> pa.Array:
    flat = pa.Array.from_buffers(pa.from_numpy_dtype(column.dtype), values.size, [None, pa.py_buffer(values)])
    return pa.FixedSizeListArray.from_arrays(flat, column.length) if column.length > 1 else flat
