"""The columns of a batch, each made contiguous once.

A row is 376 bytes; a rule reads a handful of columns of every row and whole rows of very few. Reading a column out of
packed rows costs a cache miss a row, so each is copied out once per batch and shared by all rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gdbext.events.row import ROW, Batch, concat

FEW = 8
"""Of so many rows one that is asked for does not make the whole column worth copying."""
_GPRS = "gprs"
"""A name like a column's for the sixteen general registers."""
_FIRST_GPR = ROW.fields["rax"][1] if ROW.fields else 0

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.intp]


class Columns:
    """Columns of `rows`, or of the rows at `index` of another Columns; made when first asked for."""

    __slots__ = ("_index", "_made", "_parent", "rows")

    def __init__(self, rows: Batch, parent: Columns | None = None, index: Indices | None = None) -> None:
        self.rows = rows
        self._parent = parent
        self._index = index
        self._made: dict[str, Array] = {}

    def __len__(self) -> int:
        return len(self.rows) if self._index is None else len(self._index)

    def __getitem__(self, name: str) -> Array:
        found = self._made.get(name)
        if found is None:
            if self._parent is not None and self._index is not None:
                found = self._parent.at(name, self._index)
            else:
                found = np.ascontiguousarray(_registers(self.rows) if name == _GPRS else self.rows[name])
            self._made[name] = found
        return found

    def at(self, name: str, index: Indices) -> Array:
        """The column at `index` (positions in this object); of few rows it is read where it lies."""
        if name in self._made or FEW * len(index) > len(self):
            return self[name][index]
        if self._parent is not None and self._index is not None:
            return self._parent.at(name, self._index[index])
        taken: Array = (_registers(self.rows) if name == _GPRS else self.rows[name])[index]
        return taken

    @property
    def names(self) -> tuple[str, ...]:
        """The columns there are."""
        return self.rows.dtype.names or ()

    def gprs(self) -> Array:
        """The sixteen general registers as an (n, 16) array."""
        return self[_GPRS]

    def memo(self, name: str, make: Callable[[], Array]) -> Array:
        """A derived column, made once."""
        found = self._made.get(name)
        if found is None:
            found = self._made[name] = make()
        return found

    def take(self, index: Indices) -> Columns:
        """The columns of the rows at `index` (positions in this object)."""
        return Columns(self.rows, self, index)

    def row(self, position: int) -> Batch:
        """One whole row, as a batch of one."""
        at = position if self._index is None else int(self._index[position])
        if self._parent is not None:
            return self._parent.row(at)
        return self.rows[at : at + 1]


def _registers(rows: Batch) -> Array:
    """The general registers inside the rows, not copied."""
    if not len(rows):
        return np.zeros((0, 16), "<u8")
    return np.ndarray((len(rows), 16), "<u8", rows, _FIRST_GPR, (rows.strides[0], 8))


class Groups(NamedTuple):
    """Equal values of a column. distinct: ascending.  first: where each comes first.  which: for each row the group it
    is in.  counts: rows in each group."""

    distinct: Array
    first: Indices
    which: Indices
    counts: Indices


def grouped(values: Array) -> Groups:
    """The groups of equal `values`; meant for few distinct ones, where it is faster than sorting them all."""
    distinct = np.unique(values)
    which = np.searchsorted(distinct, values)
    first = np.zeros(len(distinct), np.intp)
    first[which[::-1]] = np.arange(len(values) - 1, -1, -1)  # the one assigned last stays
    return Groups(distinct, first, which, np.bincount(which, minlength=len(distinct)))


def by_cpu(rows: Columns) -> dict[int, tuple[Indices, Columns]]:
    """For each vCPU the positions of its rows, and these rows."""
    cpus = rows["cpu"]
    if not len(rows) or (cpus == cpus[0]).all():
        return {int(cpu): (np.arange(len(rows)), rows) for cpu in cpus[:1]}
    positions = {int(cpu): np.flatnonzero(cpus == cpu) for cpu in np.unique(cpus)}
    return {cpu: (mine, rows.take(mine)) for cpu, mine in positions.items()}


class Joined(Columns):
    """A few whole rows in front of columns: what a rule carried over from the batch before, and this one."""

    __slots__ = ("_back", "_front")

    def __init__(self, front: Batch, back: Columns) -> None:
        super().__init__(back.rows)
        self._front = front
        self._back = back

    def __len__(self) -> int:
        return len(self._front) + len(self._back)

    def __getitem__(self, name: str) -> Array:
        return self.memo(name, lambda: np.concatenate((Columns(self._front)[name], self._back[name])))

    def at(self, name: str, index: Indices) -> Array:
        """The column at `index`."""
        taken: Array = self[name][index]
        return taken

    def row(self, position: int) -> Batch:
        """One whole row, as a batch of one."""
        if position < len(self._front):
            return self._front[position : position + 1]
        return self._back.row(position - len(self._front))

    def last(self, count: int) -> Batch:
        """The last `count` rows, as a batch."""
        first = max(len(self) - count, 0)
        return concat([self.row(at) for at in range(first, len(self))])


Rows = Batch | Columns
"""Anything whose columns can be read by name."""
