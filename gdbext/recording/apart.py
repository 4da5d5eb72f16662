"""The columns of a recorded batch as they lie in the file: what a rule does not ask for is never made into rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from gdbext.arch.registers import GPR64
from gdbext.events.columns import GPRS, NO_ROWS, Array, Columns, Indices
from gdbext.events.row import Batch, pick

ROWS_AT_ONCE: Final = 1024
"""Rows put together at once: they fit in the second-level cache, which every column walks through again."""


class Apart(Columns):
    """Columns that came as columns, out of a recording; rows are put together when they are asked for.

    columns: all that `dtype` has, of one length.
    """

    __slots__ = ("_columns", "_dtype")

    def __init__(self, dtype: np.dtype[np.void], columns: Mapping[str, Array]) -> None:
        super().__init__(NO_ROWS)
        self._dtype = dtype
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns["seq"])

    @property
    def dtype(self) -> np.dtype[np.void]:
        return self._dtype

    @property
    def rows(self) -> Batch:
        if not len(self._rows):
            self._rows = self.pick(np.arange(len(self)))
        return self._rows

    def row(self, position: int) -> Batch:
        return self.pick(np.array([position]))

    def pick(self, index: Indices) -> Batch:
        if len(self._rows):
            return pick(self._rows, index)
        picked = np.zeros(len(index), self._dtype)
        for start in range(0, len(index), ROWS_AT_ONCE):
            part = index[start : start + ROWS_AT_ONCE]
            for name in self.names:
                picked[name][start : start + ROWS_AT_ONCE] = self._columns[name][part]
        return picked

    def _make(self, name: str) -> Array:
        if name == GPRS:
            return np.stack([self._columns[register] for register in GPR64], axis=1)
        return self._columns[name]

    def _gather(self, name: str, index: Indices) -> Array:
        if name == GPRS:
            return np.stack([self._columns[register][index] for register in GPR64], axis=1)
        taken: Array = self._columns[name][index]
        return taken
