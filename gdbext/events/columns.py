"""The columns of a batch, each made contiguous once.

A row is 376 bytes; a rule reads a handful of columns of every row and whole rows of very few. Reading a column out of
packed rows costs a cache miss a row, so each is copied out once per batch and shared by all rules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gdbext.arch.registers import GPR64
from gdbext.events.row import ROW, Batch, concat, pick

FEW = 4
"""Of so many rows one that is asked for does not make the whole column worth copying."""
MANY = 16
"""Values from which on sorting them is quicker than comparing with each."""
SPREAD = 0x9E3779B97F4A7C15
"""The fraction of the golden ratio in 64 bits: a number times it differs from its neighbours in the upper digits; it is
odd, so that no two products of 64 bits become equal."""
NO_ROWS = np.zeros(0, ROW)
GPRS = "gprs"
"""A name like a column's for the sixteen general registers."""
_FIRST_GPR = ROW.fields["rax"][1] if ROW.fields else 0

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.intp]


class Columns:
    """Columns of `rows`, made when first asked for."""

    __slots__ = ("_made", "_rows", "_shared")

    def __init__(self, rows: Batch) -> None:
        self._rows = rows
        self._made: dict[str, Array] = {}
        self._shared: dict[str, _Known] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, name: str) -> Array:
        found = self._made.get(name)
        if found is None:
            found = self._made[name] = self._make(name)
        return found

    def memo(self, name: str, make: Callable[[], Array]) -> Array:
        """A derived column, made once."""
        found = self._made.get(name)
        if found is None:
            found = self._made[name] = make()
        return found

    def derived(self, name: str, make: Callable[[Columns], Array]) -> Array:
        """A column that `make` makes row by row; of some rows of others it is theirs, where they are many."""
        return self.memo(name, lambda: make(self))

    @property
    def apart(self) -> bool:
        """Whether the columns lie apart in memory, so that a row of general registers costs more than a column."""
        return False

    def gprs(self) -> Array:
        """The sixteen general registers as an (n, 16) array."""
        return self[GPRS]

    def at(self, name: str, index: Indices) -> Array:
        """The column at `index` (positions in this object); of few rows it is read where it lies."""
        if name in self._made or (name != GPRS and FEW * len(index) > len(self)):
            return self[name].take(index, axis=0)
        return self._gather(name, index)

    def take(self, index: Indices) -> Columns:
        """The columns of the rows at `index` (positions in this object)."""
        return _Taken(self, index)

    def shared(self, name: str, chosen: Callable[[Columns], Array]) -> Columns:
        """The columns of the rows that `chosen` marks, shared by all who ask by this name."""
        known = self._shared.get(name)
        if known is None:
            known = self._shared[name] = _Known(np.flatnonzero(chosen(self)), {}, {})
        return _Shared(self, known) if len(known.places) < len(self) else self

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The rows' type."""
        return self._rows.dtype

    @property
    def names(self) -> tuple[str, ...]:
        """The columns there are."""
        return self.dtype.names or ()

    @property
    def rows(self) -> Batch:
        """All the rows, whole."""
        return self._rows

    def row(self, position: int) -> Batch:
        """One whole row, as a batch of one."""
        return self._rows[position : position + 1]

    def pick(self, index: Indices) -> Batch:
        """A copy of the whole rows at `index`."""
        return pick(self._rows, index)

    def _make(self, name: str) -> Array:
        return np.ascontiguousarray(_column(self._rows, name))

    def _gather(self, name: str, index: Indices) -> Array:
        column = _column(self._rows, name)
        return column[index] if column.ndim == 1 else _blocks(self._rows, name, index)


class _Taken(Columns):
    """The columns of some rows of another."""

    __slots__ = ("_index", "_parent")

    def __init__(self, parent: Columns, index: Indices) -> None:
        super().__init__(NO_ROWS)
        self._parent = parent
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    @property
    def apart(self) -> bool:
        return self._parent.apart

    @property
    def dtype(self) -> np.dtype[np.void]:
        return self._parent.dtype

    @property
    def rows(self) -> Batch:
        return self._parent.pick(self._index)

    def row(self, position: int) -> Batch:
        return self._parent.row(int(self._index[position]))

    def pick(self, index: Indices) -> Batch:
        return self._parent.pick(self._index[index])

    def derived(self, name: str, make: Callable[[Columns], Array]) -> Array:
        if FEW * len(self) > len(self._parent):
            return self.memo(name, lambda: self._parent.derived(name, make).take(self._index, axis=0))
        return self.memo(name, lambda: make(self))

    def _make(self, name: str) -> Array:
        return self._parent.at(name, self._index)

    def _gather(self, name: str, index: Indices) -> Array:
        return self._parent.at(name, self._index.take(index))


class _Known(NamedTuple):
    """What is known of rows that are shared, without the columns they are taken from: each would hold the other."""

    places: Indices
    made: dict[str, Array]
    shared: dict[str, _Known]


class _Shared(_Taken):
    """Some rows of another's that many ask for: what is derived is made of these alone."""

    __slots__ = ()

    def __init__(self, parent: Columns, known: _Known) -> None:
        super().__init__(parent, known.places)
        self._made, self._shared = known.made, known.shared

    def derived(self, name: str, make: Callable[[Columns], Array]) -> Array:
        return self.memo(name, lambda: make(self))


class Joined(Columns):
    """A few whole rows in front of columns: what a rule carried over from the batch before, and this one."""

    __slots__ = ("_back",)

    def __init__(self, front: Batch, back: Columns) -> None:
        super().__init__(front)
        self._back = back

    def __len__(self) -> int:
        return len(self._rows) + len(self._back)

    @property
    def rows(self) -> Batch:
        """All the rows, whole, copied together."""
        return concat((self._rows, self._back.rows))

    def row(self, position: int) -> Batch:
        """One whole row, as a batch of one; `position` counts from the first row in front."""
        front = len(self._rows)
        return self._rows[position : position + 1] if position < front else self._back.row(position - front)

    def pick(self, index: Indices) -> Batch:
        """A copy of the whole rows at `index`; meant for few, for each is taken alone."""
        return concat([self.row(at) for at in index.tolist()]) if len(index) else self._rows[:0]

    def last(self, count: int) -> Batch:
        """The last `count` rows, as a batch."""
        return self.pick(np.arange(max(len(self) - count, 0), len(self)))

    def _make(self, name: str) -> Array:
        return np.concatenate((_column(self._rows, name), self._back[name]))

    def _gather(self, name: str, index: Indices) -> Array:
        front = len(self._rows)
        if not len(self._back):
            return _column(self._rows, name).take(index, axis=0)
        taken = self._back.at(name, np.maximum(index - front, 0))
        inside = np.flatnonzero(index < front)
        if len(inside):
            taken[inside] = _column(self._rows, name)[index[inside]]
        return taken


def _column(rows: Batch, name: str) -> Array:
    """The column, or the general registers, inside the rows, not copied."""
    if name != GPRS:
        return rows[name]
    if not len(rows):
        return np.zeros((0, 16), "<u8")
    return np.ndarray((len(rows), 16), "<u8", rows, _FIRST_GPR, (rows.strides[0], 8))


def _blocks(rows: Batch, name: str, index: Indices) -> Array:
    """Some rows of a column of several values a row, copied as bytes: twice as fast as value by value."""
    column, fields = _column(rows, name), rows.dtype.fields
    if not len(index) or fields is None:
        return column[:0]
    first = fields[GPR64[0] if name == GPRS else name][1]
    blocks = np.ndarray(len(rows), f"V{column[0].nbytes}", rows, first, rows.strides)
    return blocks[index].view(column.dtype).reshape(len(index), -1)


class Groups(NamedTuple):
    """Equal values of a column. distinct: ascending.  first, last: where each comes first, and last.  which: for each
    row the group it is in.  counts: rows in each group."""

    distinct: Array
    first: Indices
    last: Indices
    which: Indices
    counts: Indices


def grouped(values: Array) -> Groups:
    """The groups of equal `values` (64 bits each)."""
    order = together(values)
    beside = values.take(order)
    begins = np.flatnonzero(np.concatenate(([len(values) > 0], beside[1:] != beside[:-1])))
    ends = np.append(begins[1:], len(values))[: len(begins)]
    ascending = np.argsort(beside[begins])
    numbers = np.empty(len(begins), np.intp)
    numbers[ascending] = np.arange(len(begins))
    which = np.empty(len(values), np.intp)
    which[order] = np.repeat(numbers, ends - begins)
    begins, ends = begins[ascending], ends[ascending]
    return Groups(beside[begins], order[begins], order[ends - 1], which, ends - begins)


def together(values: Array) -> Indices:
    """Positions that bring equal `values` (64 bits each) side by side, those of a group in order; the groups come in
    any order.

    Sorting numbers that end in their positions is ten times faster than a stable sort of positions.
    """
    count = len(values)
    ends = np.uint64((1 << count.bit_length()) - 1)
    spread = values * np.uint64(SPREAD)
    order = (np.sort(spread & ~ends | np.arange(count, dtype=np.uint64)) & ends).astype(np.intp)
    spread = spread.take(order)
    beside = spread[1:] ^ spread[:-1]
    if ((beside <= ends) & (beside != 0)).any():  # two groups may have been mixed
        return np.argsort(values, kind="stable")
    return order


def among(values: Array, ordered: Array) -> npt.NDArray[np.bool_]:
    """Where each of `values` is one of the `ordered` ones, which ascend."""
    if not len(ordered):
        return np.zeros(values.shape, bool)
    places = np.searchsorted(ordered, values)
    found: npt.NDArray[np.bool_] = ordered[np.minimum(places, len(ordered) - 1)] == values
    return found


def any_of(values: Array, few: Collection[int]) -> npt.NDArray[np.bool_]:
    """Where each of `values` is one of a few: quicker than np.isin, which sorts."""
    if len(few) > MANY:
        return np.isin(values, np.array(list(few), values.dtype))
    found = np.zeros(len(values), bool)
    for value in few:
        found |= values == value
    return found


def by_cpu(rows: Columns) -> dict[int, tuple[Indices, Columns]]:
    """For each vCPU the positions of its rows, and these rows."""
    cpus = rows["cpu"]
    if not len(rows) or (cpus == cpus[0]).all():
        return {int(cpu): (np.arange(len(rows)), rows) for cpu in cpus[:1]}
    positions = {int(cpu): np.flatnonzero(cpus == cpu) for cpu in np.unique(cpus)}
    return {cpu: (mine, rows.take(mine)) for cpu, mine in positions.items()}


Rows = Batch | Columns
"""Anything whose columns can be read by name."""
