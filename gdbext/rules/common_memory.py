"""Where kernel memory is the same for all CPUs and in all address spaces.

A kernel may have memory of each process, or of each CPU, at one address: equal addresses are then different places.
That they are one place is shown by kernel code that is interrupted on one CPU and goes on, whole, from the same frame
on another under other page tables. What holds of one address is taken to hold of all that one entry of the top page
table maps.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.events.columns import Array, Columns, any_of
from gdbext.events.row import Flag, Kind
from gdbext.ledger.compare import U64, Bools, contexts, is_user, page_tables, space

CAPACITY: Final = 1024
"""Interrupted kernel contexts remembered; beyond it the oldest is forgotten."""
PARTS: Final = 64
"""Parts of the address space remembered."""
_WIDE, _NARROW = np.uint64(39), np.uint64(22)
"""Bits of what one entry of the top page table maps: of 64-bit code, and of ia32 without PAE."""


class CommonMemory:
    """Learns from kernel code that moves between CPUs."""

    def __init__(self) -> None:
        self._since: dict[int, int] = {}
        """By part of the address space the event that showed that it is common."""
        self._entered: tuple[Array, ...] = tuple(np.zeros(0, np.uint64) for _ in range(4))
        """Interrupted kernel contexts in other parts: event, CPU, page tables, frame; oldest first."""

    def feed(self, batch: Columns) -> None:
        """Take a batch in order of ``seq``."""
        rows = contexts(batch)
        rows = rows.take(np.flatnonzero(_of_kernel(rows)))
        rows = rows.take(np.flatnonzero(~any_of(_parts(rows), self._since)))
        if not len(rows):
            return
        came = rows.take(np.flatnonzero(rows["kind"] == Kind.ENTRY))
        columns = came["seq"], came["cpu"].astype(np.uint64), page_tables(came), came["frame"]
        every = tuple(np.concatenate(both) for both in zip(self._entered, columns, strict=True))
        went = rows.take(np.flatnonzero(rows["kind"] == Kind.EXIT))
        if len(every[0]) and len(went):
            self._learn(every, went)
        self._entered = tuple(column[-CAPACITY:] for column in every)

    def spaces(self, rows: Columns) -> U64:
        """What tells apart equal frame addresses of `rows`: the address space, 0 where memory is common."""
        parts, own = _parts(rows), space(rows)
        for part, event in self._since.items():
            own = np.where((parts == part) & (rows["seq"] > event), np.uint64(0), own)
        return own

    def _learn(self, entered: tuple[Array, ...], went: Columns) -> None:
        """Learn from the exits `went`, each of which resumes one of those that `entered`, or something older."""
        events, cpus, tables, frames = entered
        at = np.minimum(np.searchsorted(events, went["match"]), len(events) - 1)
        moved = (events[at] == went["match"]) & (cpus[at] != went["cpu"])
        moved &= (tables[at] != page_tables(went)) & (frames[at] == went["frame"])
        for part, event in zip(_parts(went)[moved].tolist(), went["seq"][moved].tolist(), strict=True):
            if len(self._since) < PARTS:
                self._since.setdefault(part, event)


def _of_kernel(rows: Columns) -> Bools:
    """True for entries from kernel code, and exits that resume some bit for bit."""
    flags = rows["flags"]
    resumed = (rows["kind"] == Kind.EXIT) & (flags & Flag.IDENTICAL != 0)
    chosen = (resumed | (rows["kind"] == Kind.ENTRY)) & (rows["frame"] != 0)
    of_kernel: Bools = chosen & ~is_user(rows) & (flags & Flag.UNREADABLE == 0)
    return of_kernel


def _parts(rows: Columns) -> U64:
    """A number for the part of the address space in which each frame lies."""
    wide = rows["mode"] == 64
    parts: U64 = (np.where(wide, rows["frame"] >> _WIDE, rows["frame"] >> _NARROW) << np.uint64(1)) | wide
    return parts
