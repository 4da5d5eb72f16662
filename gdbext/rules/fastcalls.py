"""System calls that 32-bit code makes by ``sysenter`` or ``syscall``: neither instruction can say where it returns to.

A kernel that lets them be restarted puts an ``int n`` behind the instruction and returns behind that (Linux's vDSO).
The way in takes RBP for what the instructions destroy, and the way out may destroy RCX and RDX in their turn: the
code there pops all three.
"""

from __future__ import annotations

from typing import Final

from gdbext.events.row import Batch, Flag
from gdbext.ledger.compare import Bools, by_call, is_user, keys, may_change
from gdbext.ledger.pending import Pending

INT_BYTES: Final = 2
"""Length of ``int n`` (Intel SDM vol. 2, INT n)."""
_EXIT_TAKES: Final = may_change(frozenset({"rax", "rcx", "rdx"}))
"""What SYSEXIT and SYSRET take RIP and RSP from, and the result."""
_STUB_POPS: Final = _EXIT_TAKES | may_change(frozenset({"rbp"}))


class FastCalls:
    """Finds the call that an exit returns from behind the ``int n``."""

    def __init__(self) -> None:
        self._stub = False
        """The guest was seen to return there."""

    def returns_to(self, row: Batch) -> tuple[Batch, int] | None:
        """The exit `row` (a batch of one) as if it returned to the call, and its key; None where it cannot be one's."""
        if not row["flags"][0] & Flag.LINEAR32 or not is_user(row)[0] or row["rip"][0] < INT_BYTES:
            return None
        back = row.copy()
        back["rip"] -= INT_BYTES
        return back, int(keys(back)[0])

    def forget_restarted(self, entry: Batch, pending: Pending) -> None:
        """Where `entry` (a batch of one) is such a call, the call that the ``int n`` behind it made is over."""
        if is_fast(entry)[0]:
            behind = entry.copy()
            behind["rip"] += INT_BYTES
            for number in pending.find(int(keys(behind)[0])):
                pending.take(number)

    def landed(self) -> None:
        """An exit was seen to return behind the ``int n``."""
        self._stub = True

    def may_change(self, entry: Batch) -> int:
        """The mask of the registers that come back changed from the call `entry` (a batch of one); 0 for others."""
        if not is_fast(entry)[0]:
            return 0
        return _STUB_POPS if self._stub else _EXIT_TAKES


def is_fast(entries: Batch) -> Bools:
    """True where the entry is such a call."""
    fast: Bools = by_call(entries) & ((entries["flags"] & Flag.LINEAR32) != 0)
    return fast
