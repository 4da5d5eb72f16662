"""Exits that resume nothing that waits: new contexts, of which a guest that makes many processes has many.

All in columns, for what is left over of a batch at once, and only where there is no doubt: the others are looked at
one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from gdbext.arch.paging import PAGE
from gdbext.code.disasm import MAX_INSN
from gdbext.events.columns import Columns
from gdbext.events.row import Flag, How
from gdbext.ledger.compare import U64, Bools, is_user, keys
from gdbext.ledger.leftover import is_beside, keys_below
from gdbext.ledger.pending import threads

_OFFSET: Final = np.uint64(PAGE - 1)


def begin_alone(exits: Columns, waiting: Sequence[Columns]) -> Bools:
    """True for those of the `exits` to 64-bit user code that can be meant for none of the contexts `waiting`.

    None of these has its RIP, RSP and address space; none of its thread stands within an instruction in front of its
    RIP; and, for an iret, none has its frame beside the one that is popped, or is what lies a few words up the stack.
    """
    known = np.concatenate([keys(rows) for rows in waiting])
    matched = np.isin(keys(exits), known)
    framed = exits["how"] == How.IRET
    frames = np.unique(np.concatenate([rows["frame"] for rows in waiting]))
    missed = is_beside(exits["frame"], frames) | np.isin(keys_below(exits), known).any(axis=1)
    plain = is_user(exits) & (exits["mode"] == 64)
    plain &= (exits["flags"] & (Flag.LINEAR32 | Flag.SELF | Flag.UNREADABLE)) == 0
    alone: Bools = plain & ~matched & ~_goes_on(exits, waiting) & ~(framed & missed)
    return alone


def _goes_on(exits: Columns, waiting: Sequence[Columns]) -> Bools:
    """True where a context of the thread waits at the exit's RIP or an instruction in front of it, on whatever page:
    all that is sure of where a 32-bit call was made is its place in one."""
    there = np.sort(np.concatenate([_places(rows) for rows in waiting]))
    here = _places(exits)
    some = np.searchsorted(there, here, "right") != np.searchsorted(there, here - np.uint64(MAX_INSN))
    on_two_pages = (exits["rip"] & _OFFSET) < MAX_INSN
    found: Bools = some | on_two_pages
    return found


def _places(rows: Columns) -> U64:
    """For each row a number whose low bits are the place of RIP in its page, the others a hash of the thread."""
    places: U64 = threads(rows) & ~_OFFSET | rows["rip"] & _OFFSET
    return places
