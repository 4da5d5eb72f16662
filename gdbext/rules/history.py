"""The last events, bounded: where a wrong value was seen before, and what happened before the machine died."""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.events.columns import Columns, Indices, any_of
from gdbext.events.row import ROW, Batch, Kind, concat, pick, words
from gdbext.ledger.compare import U64, is_call, is_user, keys, space

CAPACITY: Final = 2048
_NOWHERE: Final = np.empty(0, np.intp)
SWITCHES: Final = (Kind.SWITCH_OUT, Kind.SWITCH_IN, Kind.CR3)
"""A CPU turns to another stack, or to other page tables."""


class History:
    """The last CAPACITY rows before the batch at hand, and the part of it already judged."""

    def __init__(self) -> None:
        self._past: Batch = np.zeros(0, ROW)
        self._past_keys = np.zeros(0, np.uint64)
        self._end = 0
        self._now = Columns(self._past)
        self._rows = 0
        """How many came before the batch at hand."""
        self._switches: dict[int, Indices] = {}
        self._switched: dict[int, tuple[int, int]] = {}
        """Of each vCPU where its switches lie in the batch at hand, and the last one before it: its place, counted
        from the first row of all, and its event."""

    def begin(self, batch: Columns) -> None:
        """`batch` is about to be judged; the one before becomes past."""
        if len(self._now):
            last = np.arange(max(len(self._now) - CAPACITY, 0), len(self._now))
            self._keep(self._now.pick(last), keys(self._now)[-CAPACITY:])
        for cpu, places in self._switches.items():
            self._switched[cpu] = self._rows + int(places[-1]), int(self._now["seq"][places[-1]])
        self._rows += len(self._now)
        self._now = batch
        switches = np.flatnonzero(any_of(batch["kind"], SWITCHES))
        cpus = batch["cpu"][switches]
        self._switches = {cpu: switches[cpus == cpu] for cpu in np.unique(cpus).tolist()}

    def before(self, seq: int) -> Batch:
        """The rows with an event number below `seq`, oldest first, CAPACITY at most."""
        end = self._judged(seq)
        now = self._now.rows[max(end - CAPACITY, 0) : end]
        past = self._past[self._end - min(self._end, CAPACITY - len(now)) : self._end]
        past = past[: np.searchsorted(past["seq"], seq)]
        return concat((past, now)) if len(past) and len(now) else now if len(now) else past

    def interrupted(self, key: int, seq: int) -> Batch:
        """The contexts with this key that were interrupted before event `seq` (not by a system call), oldest first."""
        end = self._judged(seq)
        start = max(end - CAPACITY, 0)
        kept = self._end - min(self._end, CAPACITY - (end - start))
        past = pick(self._past, kept + np.flatnonzero(self._past_keys[kept : self._end] == key))
        found = self._now.pick(start + np.flatnonzero(keys(self._now)[start:end] == key))
        found = concat((past, found)) if len(past) else found
        return pick(found, (found["kind"] == Kind.ENTRY) & (found["seq"] < seq) & ~is_call(found))

    def last_switch(self, cpu: int, before: int) -> int:
        """The event in which vCPU `cpu` last switched threads or page tables before event `before`; 0: in none of the
        CAPACITY rows before that."""
        judged = self._judged(before)
        places = self._switches.get(cpu, _NOWHERE)
        found = places[: np.searchsorted(places, judged)][-1:]
        if len(found):
            return int(self._now["seq"][found[0]]) if judged - found[0] <= CAPACITY else 0
        row, event = self._switched.get(cpu, (-CAPACITY, 0))
        return event if self._rows + judged - row <= CAPACITY else 0

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

    def _judged(self, seq: int) -> int:
        """How many rows of the batch at hand come before event `seq`."""
        return int(np.searchsorted(self._now["seq"], seq))

    def _keep(self, rows: Batch, known: U64) -> None:
        """Append to the past: an array of twice the rows kept, moved to its front when it is full."""
        if self._past.dtype != rows.dtype or not len(self._past):
            self._past, self._end = np.zeros(2 * CAPACITY, rows.dtype), 0
            self._past_keys = np.zeros(2 * CAPACITY, np.uint64)
        if self._end + len(rows) > 2 * CAPACITY:
            kept = slice(self._end - min(self._end, CAPACITY), self._end)
            self._end = kept.stop - kept.start
            words(self._past)[: self._end] = words(self._past)[kept].copy()
            self._past_keys[: self._end] = self._past_keys[kept].copy()
        words(self._past)[self._end : self._end + len(rows)] = words(rows)
        self._past_keys[self._end : self._end + len(rows)] = known
        self._end += len(rows)
