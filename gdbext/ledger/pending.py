"""The pending contexts: interrupted, not yet resumed, over all CPUs. A bounded store of event rows."""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.events.row import ROW, Batch

CAPACITY: Final = 4096
"""Contexts kept; beyond it the oldest is forgotten (a thread that died suspended is never resumed)."""


class Pending:
    """Rows of entries by key. The newest of equal keys comes first, as on a stack."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._rows: Batch = np.zeros(0, ROW)
        self._key_of: list[int | None] = []
        self._slots: dict[int, list[int]] = {}
        self._taken: dict[int, None] = {}  # a dict keeps the order of insertion
        self._next = 0

    def __len__(self) -> int:
        return len(self._taken)

    def add(self, key: int, row: Batch) -> None:
        """Remember the entry `row` (a batch of one)."""
        if self._rows.dtype != row.dtype or not len(self._rows):
            self._grow(row)
        slot = self._next
        self._next = (slot + 1) % self._capacity
        old = self._key_of[slot]
        if old is not None:
            self._forget(old, slot)
        self._rows[slot] = row[0]
        self._key_of[slot] = key
        self._taken[slot] = None
        self._slots.setdefault(key, []).append(slot)

    def find(self, key: int) -> list[int]:
        """Slots of the contexts with this key, newest first."""
        return self._slots.get(key, [])[::-1]

    def rows(self, slots: list[int]) -> Batch:
        """The rows in `slots`."""
        return self._rows[slots]

    def take(self, slot: int) -> None:
        """The context in `slot` was resumed."""
        key = self._key_of[slot]
        if key is not None:
            self._forget(key, slot)

    def all(self) -> Batch:
        """Every pending row, oldest first."""
        return self._rows[list(self._taken)]

    def _forget(self, key: int, slot: int) -> None:
        group = self._slots[key]
        group.remove(slot)
        if not group:
            del self._slots[key]
        self._key_of[slot] = None
        del self._taken[slot]

    def _grow(self, row: Batch) -> None:
        """Allocate for this dtype; a source never changes its row in mid-stream."""
        self._rows = np.zeros(self._capacity, row.dtype)
        self._key_of = [None] * self._capacity
        self._slots.clear()
        self._taken.clear()
        self._next = 0
