"""The last store at each watched address, as of any event of the batch at hand.

Stores come by the thousand and are asked for rarely: those of the batch at hand stay columns, which are looked through
only when somebody asks; of all before only the last store at each address is kept.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from gdbext.events.columns import Columns, Indices
from gdbext.events.row import Batch


class Write(NamedTuple):
    """One store into a slot: event number, CPU, instruction, value."""

    event: int
    cpu: int
    pc: int
    value: int

    @classmethod
    def of(cls, row: Batch) -> Write:
        """The store of a STORE row (a batch of one); of one that is told late, its event is the last before it."""
        event, cpu, pc, value = (int(row[name][0]) for name in _COLUMNS)
        return cls(int(row["match"][0]) or event, cpu, pc, value)


_COLUMNS: Final = ("seq", "cpu", "pc", "value")


class LastStores:
    """Stores by address (guest virtual)."""

    def __init__(self) -> None:
        self._before: dict[int, Write] = {}
        self._batch: Columns | None = None
        self._parts: list[Indices] = []
        self._places: dict[int, Indices] | None = None

    def begin(self, batch: Columns) -> None:
        """`batch` is about to be judged; what was noted of the one before is now past."""
        if self._batch is not None:
            for address, places in self._by_address().items():
                self._before[address] = self._write(int(places[-1]))
        self._batch, self._parts, self._places = batch, [], None

    def note(self, stores: Indices) -> None:
        """The rows `stores` of the batch, behind those noted before, are stores to be known."""
        self._parts.append(stores)
        self._places = None

    def last(self, address: int, before: int) -> Write | None:
        """The last store at `address` before event `before`, None if none is known."""
        places = self._by_address().get(address)
        if places is not None and self._batch is not None:
            count = int(np.searchsorted(self._batch["seq"][places], before))
            if count:
                return self._write(int(places[count - 1]))
        found = self._before.get(address)
        return found if found is not None and found.event < before else None

    def _by_address(self) -> dict[int, Indices]:
        """The stores noted of the batch at hand, in order, by address."""
        if self._places is None:
            self._places = {}
            stores = np.concatenate(self._parts) if self._parts else np.empty(0, np.intp)
            if len(stores) and self._batch is not None:
                addresses = self._batch["addr"][stores]
                order = np.argsort(addresses, kind="stable")
                starts = np.flatnonzero(np.diff(addresses[order], prepend=addresses[order[0]] ^ np.uint64(1)))
                groups = np.split(stores[order], starts[1:])
                self._places = dict(zip(addresses[order[starts]].tolist(), groups, strict=True))
        return self._places

    def _write(self, place: int) -> Write:
        assert self._batch is not None
        return Write(*(int(self._batch[name][place]) for name in _COLUMNS))
