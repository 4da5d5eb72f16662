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
from gdbext.events.columns import Columns, among
from gdbext.events.row import Flag, How
from gdbext.ledger.compare import U64, Bools, is_user
from gdbext.ledger.leftover import is_beside, keys_below
from gdbext.ledger.pending import Where

_OFFSET: Final = np.uint64(PAGE - 1)


def begin_alone(exits: Columns, waiting: Sequence[Where]) -> Bools:
    """True for those of the `exits` to 64-bit user code that can be meant for none of the contexts that are `waiting`.

    None of these has its RIP, RSP and address space; none of its thread stands within an instruction in front of its
    RIP; and, for an iret, none has its frame beside the one that is popped, or is what lies a few words up the stack.
    """
    key, thread, frame, rip = (np.concatenate(columns) for columns in zip(*waiting, strict=True))
    known, there, here = np.sort(key), np.sort(_places(thread, rip)), Where.of(exits)
    matched = among(here.key, known)
    framed = exits["how"] == How.IRET
    missed = is_beside(here.frame, np.sort(frame)) | among(keys_below(exits), known).any(axis=1)
    plain = is_user(exits) & (exits["mode"] == 64)
    plain &= (exits["flags"] & (Flag.LINEAR32 | Flag.SELF | Flag.UNREADABLE)) == 0
    alone: Bools = plain & ~matched & ~_goes_on(here, there) & ~(framed & missed)
    return alone


def _goes_on(exits: Where, there: U64) -> Bools:
    """True where a context of the thread waits at the exit's RIP or an instruction in front of it, on whatever page:
    all that is sure of where a 32-bit call was made is its place in one.

    there: the places of all that wait, ascending.
    """
    here = _places(exits.thread, exits.rip)
    some = np.searchsorted(there, here, "right") != np.searchsorted(there, here - np.uint64(MAX_INSN))
    on_two_pages = (exits.rip & _OFFSET) < MAX_INSN
    found: Bools = some | on_two_pages
    return found


def _places(thread: U64, rip: U64) -> U64:
    """For each context a number whose low bits are the place of RIP in its page, the others a hash of the thread."""
    places: U64 = thread & ~_OFFSET | rip & _OFFSET
    return places
