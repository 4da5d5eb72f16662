"""System calls that 32-bit code makes by ``sysenter`` or ``syscall``: neither instruction can say where it returns to.

A kernel that lets them be restarted puts an ``int n`` behind the instruction and returns behind that (Linux's vDSO).
The way in takes RBP for what the instructions destroy, and the way out may destroy RCX and RDX in their turn: the
code there pops all three.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.events.columns import Columns, Rows
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.ledger.compare import BIT, Bools, Law, by_call, differences, is_user, mask_of, mixed
from gdbext.ledger.leftover import Left
from gdbext.ledger.pairing import Pairs, adjacent
from gdbext.ledger.pending import CAPACITY, Pending, threads

INT_BYTES: Final = 2
"""Length of ``int n`` (Intel SDM vol. 2, INT n)."""
PAGE_OFFSET: Final = np.uint64(0xFFF)
"""All that is sure of where a ``sysenter`` stood: it keeps no RIP, and a page of code may be mapped at many places."""
_EXIT_TAKES: Final = mask_of(("rax", "rcx", "rdx"))
"""What SYSEXIT and SYSRET take RIP and RSP from, and the result."""
_STUB_POPS: Final = _EXIT_TAKES | mask_of(("rbp",))


class FastCalls:
    """Finds the call that an exit returns from behind the ``int n``."""

    def __init__(self) -> None:
        self._stub = False
        """The guest was seen to return there."""
        self._soft = np.empty(0, np.uint64)
        """Where calls by ``int n`` were left over: one that is made again makes the pending one void."""

    def pair(self, batch: Columns, pairs: Pairs, law: Law, hold_back: Bools) -> Pairs:
        """`pairs`, and the calls among what they leave over that came back whole behind the ``int n``."""
        rows = batch.take(pairs.rest)
        kind, how, flags = rows["kind"], rows["how"], rows["flags"]
        small = (flags & (Flag.LINEAR32 | Flag.UNREADABLE | Flag.SELF) == Flag.LINEAR32) & is_user(rows)
        is_exit = kind == Kind.EXIT
        soft, fast = ~is_exit & (how == How.SOFT), ~is_exit & by_call(rows)
        chosen = np.flatnonzero(small & (is_exit | soft | fast))
        if not len(chosen):
            return pairs
        behind = (rows["rip"] + np.uint64(INT_BYTES) * fast) & PAGE_OFFSET
        key = mixed(threads(rows), rows["rsp"], behind)[chosen]
        self._soft = np.concatenate((self._soft, key[soft[chosen]]))[-CAPACITY:]
        if not self._stub:
            return pairs
        before, after = adjacent(key, is_exit[chosen])
        again = np.isin(key[before], self._soft)
        entries, exits = (pairs.rest[chosen[at[~again]]] for at in (before, after))
        allowed = np.uint32(_STUB_POPS | int(BIT["rip"]))
        lost = differences(batch.take(entries), batch.take(exits), law) & ~allowed
        whole = (lost == 0) & ~hold_back[exits]
        return pairs.joined(entries[whole], exits[whole])

    def returns_from(self, left: Left, pending: Pending) -> list[int]:
        """Numbers of the pending calls that the exit `left` may return from, newest first."""
        if not left.flags & Flag.LINEAR32 or not left.user:
            return []
        numbers = pending.at_stack(left.traits)
        if not numbers:
            return []
        rows = pending.rows(numbers)
        ahead = (left.row["rip"][0] - rows["rip"]) & PAGE_OFFSET
        fits = is_fast(rows) & ((ahead == INT_BYTES) | ((ahead == 0) & (rows["how"] == How.SYSENTER)))
        return [numbers[at] for at in np.flatnonzero(fits)[::-1]]

    def forget_restarted(self, left: Left, pending: Pending) -> None:
        """The entry `left` is such a call: the call that the ``int n`` behind it made is over."""
        numbers = pending.at_stack(left.traits)
        rows = pending.rows(numbers)
        behind = (rows["how"] == How.SOFT) & ((rows["rip"] - left.row["rip"][0]) & PAGE_OFFSET == INT_BYTES)
        for at in np.flatnonzero(behind):
            pending.take(numbers[at])

    def landed(self) -> None:
        """An exit was seen to return behind the ``int n``."""
        self._stub = True

    def may_change(self, entry: Batch) -> int:
        """The mask of the registers that come back changed from the call `entry` (a batch of one); 0 for others."""
        if not is_fast(entry)[0]:
            return 0
        return _STUB_POPS if self._stub else _EXIT_TAKES


def is_fast(entries: Rows) -> Bools:
    """True where the entry is such a call."""
    fast: Bools = by_call(entries) & ((entries["flags"] & Flag.LINEAR32) != 0)
    return fast
