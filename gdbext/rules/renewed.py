"""Threads that go on elsewhere than they were entered: a process that took over the address space of one that has
ended, one that runs another program, one that takes a signal. What was learnt of their stacks may be the one's before.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.code.disasm import MAX_INSN
from gdbext.events.columns import Array, Columns, Indices, together
from gdbext.events.row import Flag, How, Kind
from gdbext.ledger.compare import is_user, mixed, space

CAPACITY: Final = 4096

Thread = tuple[int, int]
"""Address space and FS base."""


class Renewals:
    """Remembers where each thread was entered last."""

    def __init__(self) -> None:
        self._entered: dict[Thread, int] = {}
        """RIP, guest virtual."""

    def feed(self, rows: Columns) -> list[tuple[int, Thread]]:
        """The exits among the contexts `rows`, by position, at which a thread goes on at another place than that of its
        last entry, or than an instruction from there; ascending. What returns to a place of the kernel's choice
        (`sysexit`) tells nothing."""
        entry = rows["kind"] == Kind.ENTRY
        left = ~entry & ((rows["flags"] & (Flag.IDENTICAL | Flag.SELF)) == 0) & (rows["how"] != How.SYSEXIT)
        places = np.flatnonzero(is_user(rows) & ((rows["flags"] & Flag.UNREADABLE) == 0) & (entry | left))
        if not len(places):
            return []
        spaces, bases = space(rows)[places], rows.at("fs_base", places)
        key = mixed(spaces, bases, np.uint64(0))
        order = together(key)
        places, spaces, bases, key = places[order], spaces[order], bases[order], key[order]
        rip, entry = rows.at("rip", places), entry[places]
        first = np.concatenate(([True], key[1:] != key[:-1]))
        last = _last_entry(entry, first)
        begun: list[tuple[int, Thread]] = []
        for at in self._doubtful(rip, entry, last).tolist():
            thread = int(spaces[at]), int(bases[at])
            before = int(rip[last[at]]) if last[at] >= 0 else self._entered.get(thread)
            if before is not None and abs(int(rip[at]) - before) > MAX_INSN:
                begun.append((int(places[at]), thread))
        self._note(spaces, bases, rip, last[np.append(np.flatnonzero(first)[1:], len(last)) - 1])
        return sorted(begun)

    @staticmethod
    def _doubtful(rip: Array, entry: Array, last: Indices) -> Indices:
        """Positions of the exits that need a look: their thread's last entry in these rows was elsewhere."""
        elsewhere = rip != rip[np.maximum(last, 0)]
        doubtful: Indices = np.flatnonzero(~entry & ((last < 0) | elsewhere))
        return doubtful

    def _note(self, spaces: Array, bases: Array, rip: Array, last: Indices) -> None:
        """Remember the last entry of each thread, at the positions `last`; below 0: it had none."""
        if len(self._entered) > CAPACITY:
            self._entered.clear()
        last = last[last >= 0]
        threads = zip(spaces[last].tolist(), bases[last].tolist(), strict=True)
        self._entered.update(zip(threads, rip[last].tolist(), strict=True))


def _last_entry(entry: Array, first: Array) -> Indices:
    """For each position that of the entry at or before it in its group, -1: none; `first` begins groups."""
    count = np.arange(len(entry))
    begins = np.maximum.accumulate(np.where(first, count, 0))
    last = np.maximum.accumulate(np.where(entry, count, -1))
    found: Indices = np.where(last >= begins, last, -1)
    return found
