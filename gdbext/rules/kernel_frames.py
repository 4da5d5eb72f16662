"""Interrupted kernel code by the frame that the CPU pushed: whose is the one that an iret pops?

Kernel code is resumed from where it was interrupted on its own stack, so that the frame tells which context is meant
even where RIP does not: an exception-table fixup goes on elsewhere, and what faulted there before and was fixed up in
its turn is never resumed. A frame at the same place for the same RSP has overwritten the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from gdbext.arch import vectors
from gdbext.arch.frames import word_size
from gdbext.events.row import Batch, Flag, How, concat
from gdbext.ledger.compare import BIT, GPR_BITS, Bools, Law, differences, is_user
from gdbext.ledger.leftover import Left
from gdbext.ledger.pending import Pending
from gdbext.rules.policy import Policy

FIXED_REGISTERS: Final = 2
"""A fixup sets this many registers at most: a result, a count of what is left."""


LEAST_WORDS: Final = 3
"""Of a frame, whatever its kind: RIP, CS, RFLAGS."""


class KernelFrames:
    """Finds the context whose frame an exit pops, and says what it lost."""

    def __init__(self, pending: Pending, policy: Policy) -> None:
        self._pending = pending
        self._policy = policy

    def take_owner(self, left: Left, exact: Batch | None, resumed_later: Callable[[], Batch]) -> Batch | None:
        """The newest context whose frame the exit `left` pops, with all that it overwrote.

        resumed_later: gives the contexts that the batch at hand pairs with later exits: what was fixed up may be taken
        for one that comes back later, with the same registers.  None if the owner is not newer than `exact`, the
        context at the same RIP, or the exit does not go to kernel code; or if the CPU has pushed another frame across
        its frame since, as it does where the handler carried out a call and moved the frame a word down.
        """
        if left.how != How.IRET or left.user:
            return None
        numbers = self._pending.at_place(left.traits)
        if not numbers and not left.on_frame:
            return None
        row, rows = left.row, self._pending.rows(numbers)
        waiting = _on_this_frame(rows, row)
        later = resumed_later() if left.on_frame else rows[:0]
        owner = concat((later[_on_this_frame(later, row)][-1:], rows[waiting][:1]))
        owner = owner[np.argsort(owner["seq"])][-1:]
        if not len(owner) or (exact is not None and owner["seq"][0] < exact["seq"][0]):
            return None
        for at in np.flatnonzero(waiting):
            self._pending.take(numbers[at])
        return None if _overwritten(owner, self._pending.near(left.traits)) else owner

    def lost(self, entry: Batch, row: Batch, law: Law) -> int:
        """The mask of what the exit `row` did not bring back of `entry`, what a fixup may change left out."""
        mask = int(differences(entry, row, law)[0])
        if not mask & BIT["rip"] or not self._may_fix(entry, row):
            return mask
        registers = mask & GPR_BITS
        few = registers.bit_count() <= FIXED_REGISTERS
        return mask & ~int(BIT["rip"]) & ~(registers if few else 0)

    def _may_fix(self, entry: Batch, row: Batch) -> bool:
        """True if an exception-table fixup, or an emulated instruction, may have moved RIP."""
        vector, fixups = int(entry["vector"][0]), self._policy.fixups
        return vectors.is_exception(vector) and (
            fixups is None or fixups.lead(vector, int(entry["rip"][0]), int(row["rip"][0]))
        )


def _on_this_frame(rows: Batch, row: Batch) -> Bools:
    """True for interrupted kernel code whose frame lies where the exit `row` pops its own, for the same RSP."""
    here = (rows["frame"] == row["frame"]) & (rows["rsp"] == row["rsp"]) & (rows["mode"] == row["mode"])
    ours: Bools = here & ~is_user(rows) & ((rows["flags"] & Flag.IST) == 0)
    return ours


def _overwritten(owner: Batch, near: Batch) -> bool:
    """True if the CPU has since pushed a frame that begins within that of `owner` (a batch of one).

    near: the contexts that wait with a frame close to that one.
    """
    size = word_size(int(owner["mode"][0])) * LEAST_WORDS
    within = (near["frame"] > owner["frame"][0]) & (near["frame"] < owner["frame"][0] + np.uint64(size))
    return bool((within & (near["seq"] > owner["seq"][0])).any())
