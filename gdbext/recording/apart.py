"""The columns of recorded batches as they lie in the file: what a rule does not ask for is never made into rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from gdbext.arch.registers import GPR64
from gdbext.events.columns import GPRS, NO_ROWS, Array, Columns, Indices
from gdbext.events.row import Batch, concat, pick

ROWS_AT_ONCE: Final = 1024
"""Rows put together at once: they fit in the second-level cache, which every column walks through again."""


class Apart(Columns):
    """Columns that came as columns, out of a recording; rows are put together when they are asked for.

    parts: what lies one behind the other; of each, all the columns that `dtype` has, of one length.
    """

    __slots__ = ("_dtype", "_parts", "_starts")

    def __init__(self, dtype: np.dtype[np.void], *parts: Mapping[str, Array]) -> None:
        super().__init__(NO_ROWS)
        self._dtype = dtype
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part["seq"]) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def apart(self) -> bool:
        """True: one register of all rows lies together, the registers of one row do not."""
        return True

    @property
    def parts(self) -> tuple[Mapping[str, Array], ...]:
        """What it was made of."""
        return self._parts

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The type of the rows that are put together, by the columns that were recorded."""
        return self._dtype

    @property
    def rows(self) -> Batch:
        """All the rows, whole; put together once and kept."""
        if not len(self._rows):
            self._rows = self.pick(np.arange(len(self)))
        return self._rows

    def row(self, position: int) -> Batch:
        """One whole row, as a batch of one."""
        if len(self._rows):
            return self._rows[position : position + 1]
        own = int(np.searchsorted(self._starts, position, "right")) - 1
        part, inside = self._parts[own], position - int(self._starts[own])
        return np.array([tuple(part[name][inside] for name in self.names)], self._dtype)

    def pick(self, index: Indices) -> Batch:
        """A copy of the whole rows at `index`."""
        if len(self._rows):
            return pick(self._rows, index)
        picked = np.zeros(len(index), self._dtype)
        for part, where, inside in self._by_part(index):
            for start in range(0, len(inside), ROWS_AT_ONCE):
                some = slice(start, start + ROWS_AT_ONCE)
                to, source = _run(where[some]), _run(inside[some])
                for name in self.names:
                    picked[name][to] = part[name][source]
        return picked

    def _by_part(self, index: Indices) -> Iterator[tuple[Mapping[str, Array], Indices, Indices]]:
        """Each part that has rows at `index`, which of `index` these are, and where in the part they lie."""
        own = np.searchsorted(self._starts, index, "right") - 1
        for number in np.unique(own).tolist():
            where = np.flatnonzero(own == number)
            yield self._parts[number], where, index[where] - self._starts[number]

    def _make(self, name: str) -> Array:
        made = [_column(part, name) for part in self._parts]
        return made[0] if len(made) == 1 else np.concatenate(made)

    def _gather(self, name: str, index: Indices) -> Array:
        if name == GPRS:
            return np.stack([self.at(register, index) for register in GPR64]).T
        if len(self._parts) == 1:
            alone: Array = self._parts[0][name].take(index, axis=0)
            return alone
        like = _column(self._parts[0], name, np.zeros(0, np.intp))
        taken = np.empty((len(index), *like.shape[1:]), like.dtype)
        for part, where, inside in self._by_part(index):
            taken[where] = _column(part, name, inside)
        return taken


def joined(batches: Sequence[Columns]) -> Columns:
    """The rows of all `batches` (at least one, all of one dtype), one behind the other."""
    if len(batches) == 1:
        return batches[0]
    parts = [part for batch in batches if isinstance(batch, Apart) for part in batch.parts]
    if all(isinstance(batch, Apart) for batch in batches):
        return Apart(batches[0].dtype, *parts)
    return Columns(concat([batch.rows for batch in batches]))


def _run(index: Indices) -> Indices | slice:
    """The same places; as a slice, which is quicker, where they lie one behind the other."""
    first, last = int(index[0]), int(index[-1])
    if last - first == len(index) - 1 and (np.diff(index) == 1).all():
        return slice(first, last + 1)
    return index


def _column(part: Mapping[str, Array], name: str, index: Indices | slice = slice(None)) -> Array:
    """The column, or the general registers, of the rows at `index`."""
    if name == GPRS:
        return np.stack([part[register][index] for register in GPR64]).T
    column: Array = part[name][index]
    return column
