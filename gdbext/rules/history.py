"""The last events, bounded: where a wrong value was seen before, and what happened before the machine died."""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

from gdbext.events.row import ROW, Batch, Kind, concat
from gdbext.ledger.compare import is_user, space

CAPACITY: Final = 2048


class History:
    """The last CAPACITY rows before the batch at hand, and the part of it already judged."""

    def __init__(self) -> None:
        self._past: deque[Batch] = deque()
        self._kept = 0
        self._now: Batch = np.zeros(0, ROW)

    def begin(self, batch: Batch) -> None:
        """`batch` is about to be judged; the one before becomes past."""
        if len(self._now):
            self._past.append(self._now[-CAPACITY:].copy())
            self._kept += len(self._past[-1])
        while self._past and self._kept - len(self._past[0]) >= CAPACITY:
            self._kept -= len(self._past.popleft())
        self._now = batch

    def before(self, seq: int) -> Batch:
        """The rows with an event number below `seq`, oldest first, CAPACITY at most."""
        parts = [*self._past, self._now]
        kept = [part[part["seq"] < seq] for part in parts if len(part) and part["seq"][0] < seq]
        rows = concat(kept) if kept else self._now[:0]
        return rows[-CAPACITY:]

    def entries_between(self, after: int, upto: int) -> int:
        """How many entries have event numbers above `after` and up to `upto` (within the rows kept)."""
        rows = self.before(upto + 1)
        return int(((rows["kind"] == Kind.ENTRY) & (rows["seq"] > after)).sum())

    def last_with(self, row: Batch, field: str, value: int) -> Batch | None:
        """The last entry of the thread of `row` (a batch of one) before it whose `field` was `value`, or None.

        A thread is told by its address space and FS base when it is user code; kernel code is not told apart.
        """
        rows = self.before(int(row["seq"][0]))
        rows = rows[rows["kind"] == Kind.ENTRY]
        if not len(rows):
            return None
        mine = (rows[field] == np.uint64(value)) & (space(rows) == space(row)) & (is_user(rows) == is_user(row))
        hits = np.flatnonzero(mine)
        return rows[hits[-1:]] if len(hits) else None
