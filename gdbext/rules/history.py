"""The last events, bounded: where a wrong value was seen before, and what happened before the machine died."""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.arch.addresses import CR3_COPIES, CR3_TABLE_32, CR3_TABLES
from gdbext.events.columns import NO_ROWS, Columns, Indices, Rows, any_of
from gdbext.events.row import ROW, Batch, Kind, concat, pick, words
from gdbext.ledger.compare import U64, Bools, contexts, is_call, is_user, keys, space

CAPACITY: Final = 2048
_NOWHERE: Final = np.empty(0, np.intp)
TURNS: Final = (Kind.SWITCH_OUT, Kind.SWITCH_IN)
"""A CPU turns to another stack."""
SWITCHES: Final = (*TURNS, Kind.CR3)
"""A CPU turns to another stack, or loads page tables."""


class _Trail:
    """Of each vCPU the events of one sort: their places among some rows of the batch at hand, and the last one before
    it."""

    def __init__(self) -> None:
        self._places: dict[int, Indices] = {}
        self._before: dict[int, Batch] = {}
        self._now = Columns(NO_ROWS)

    def begin(self, rows: Columns, of_sort: Bools) -> None:
        """A batch is about to be judged; its events of the sort are those of `rows` that are `of_sort`."""
        for cpu, places in self._places.items():
            self._before[cpu] = self._now.row(int(places[-1])).copy()
        self._now = rows
        places = np.flatnonzero(of_sort)
        cpus = rows["cpu"].take(places)
        self._places = {cpu: places[cpus == cpu] for cpu in np.flatnonzero(np.bincount(cpus)).tolist()}

    def last(self, cpu: int, before: int) -> Batch:
        """The last before event `before`, however long ago (a batch of one, or empty)."""
        places = self._places.get(cpu, _NOWHERE)
        upto = np.searchsorted(self._now["seq"], before)
        found = places[: np.searchsorted(places, upto)][-1:].tolist()
        return self._now.row(found[0]) if found else self._before.get(cpu, NO_ROWS)

    def places_before(self, cpu: int, upto: Indices) -> Indices:
        """For each of the places `upto` among these rows that of the last event in front of it; -1: there is none in
        the batch."""
        places = self._places.get(cpu, _NOWHERE)
        found: Indices = np.concatenate(([-1], places))[np.searchsorted(places, upto)]
        return found


class History:
    """The last CAPACITY rows before the batch at hand, and the part of it already judged."""

    def __init__(self) -> None:
        self._past: Batch = np.zeros(0, ROW)
        self._past_keys = np.zeros(0, np.uint64)
        self._end = 0
        self._now = Columns(self._past)
        self._recent: list[Columns] = []
        """The batches before it whose rows are not in the past yet: mostly nobody asks for them."""
        self._switches = _Trail()
        self._turns = _Trail()
        self._crossings = _Trail()

    def begin(self, batch: Columns) -> None:
        """`batch` is about to be judged; the one before becomes past."""
        self._recent.append(self._now)
        while sum(map(len, self._recent[1:])) >= CAPACITY:
            del self._recent[0]
        self._now = batch
        rows = batch.take(np.flatnonzero(any_of(batch["kind"], SWITCHES)))
        self._switches.begin(rows, self.switches(rows))
        self._turns.begin(rows, any_of(rows["kind"], TURNS))
        rows = contexts(batch)
        self._crossings.begin(rows, is_user(rows))

    def before(self, seq: int) -> Batch:
        """The rows with an event number below `seq`, oldest first, CAPACITY at most."""
        self._settle()
        end = self._judged(seq)
        now = self._now.rows[max(end - CAPACITY, 0) : end]
        past = self._past[self._end - min(self._end, CAPACITY - len(now)) : self._end]
        past = past[: np.searchsorted(past["seq"], seq)]
        return concat((past, now)) if len(past) and len(now) else now if len(now) else past

    def interrupted(self, key: int, seq: int) -> Batch:
        """The contexts with this key that were interrupted before event `seq` (not by a system call), oldest first."""
        self._settle()
        end = self._judged(seq)
        start = max(end - CAPACITY, 0)
        kept = self._end - min(self._end, CAPACITY - (end - start))
        past = pick(self._past, kept + np.flatnonzero(self._past_keys[kept : self._end] == key))
        found = self._now.pick(start + np.flatnonzero(keys(self._now)[start:end] == key))
        found = concat((past, found)) if len(past) else found
        return pick(found, (found["kind"] == Kind.ENTRY) & (found["seq"] < seq) & ~is_call(found))

    def last_switch(self, cpu: int, before: int) -> int:
        """The event in which vCPU `cpu` last switched threads or page tables before event `before`; 0: in none."""
        found = self._switches.last(cpu, before)
        return int(found["seq"][0]) if len(found) else 0

    def last_turn(self, cpu: int, before: int) -> int:
        """The event in which vCPU `cpu` last turned to another stack before event `before`; 0: in none."""
        found = self._turns.last(cpu, before)
        return int(found["seq"][0]) if len(found) else 0

    def last_crossing(self, cpu: int, before: int) -> Batch:
        """The last entry from user code, or exit to it, of vCPU `cpu` before event `before` (a batch of one, or
        empty)."""
        return self._crossings.last(cpu, before)

    def crossings_before(self, cpu: int, places: Indices) -> Indices:
        """For each of the `places` among the contexts of the batch at hand that of the last such event of the vCPU in
        front of it; -1: none is in the batch."""
        return self._crossings.places_before(cpu, places)

    @staticmethod
    def switches(rows: Rows) -> Bools:
        """Which of `rows` are switches of threads or page tables, but for the loads of the other copy of their own, as
        page-table isolation does at each entry and exit."""
        found: Bools = any_of(rows["kind"], SWITCHES)
        loads = np.flatnonzero(rows["kind"] == Kind.CR3)
        tables = np.where(rows["mode"].take(loads) == 64, np.uint64(CR3_TABLES), np.uint64(CR3_TABLE_32))
        found[loads] = (rows["value"].take(loads) ^ rows["cr3"].take(loads)) & tables != CR3_COPIES
        return found

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

    def _settle(self) -> None:
        """Bring the recent batches into the past."""
        for batch in self._recent:
            if len(batch):
                last = np.arange(max(len(batch) - CAPACITY, 0), len(batch))
                self._keep(batch.pick(last), keys(batch)[-CAPACITY:])
        self._recent.clear()

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
