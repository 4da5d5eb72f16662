"""A context resumed twice: CW404.

An exit that is no pending context, but bit for bit one that was resumed before, loads what an earlier save left: the
newer save of the same thread is not complete, or was made elsewhere.
"""

from __future__ import annotations

import numpy as np

from gdbext.events.row import Batch
from gdbext.ledger.compare import agreement, gprs, is_call, is_user, keys, space
from gdbext.rules.draft import Draft
from gdbext.rules.finding import Difference
from gdbext.rules.history import History
from gdbext.rules.verdicts import STRONG_TELLING


def resumed_again(row: Batch, live: Batch, history: History) -> tuple[Draft, Batch] | None:
    """Judge an exit (a batch of one) that matches no pending context: the draft and the newer context, or None.

    System calls are left out: fork's child and parent resume one context. The thread must have been interrupted
    again since: there is a pending context of the same address space and FS base that is newer. A pending system
    call does not count: it may be the last one of a process whose page tables are in use again.
    """
    if not len(live):
        return None
    old = history.last_interrupted(int(keys(row)[0]), int(row["seq"][0]))
    if old is None:
        return None
    equal, telling = agreement(old, row)
    mine = (space(live) == space(row)) & (live["fs_base"] == row["fs_base"]) & (is_user(live) == is_user(row))
    if not bool(is_user(row)[0]):
        mine &= live["rsp"] >> np.uint64(12) == row["rsp"] >> np.uint64(12)
    newer = live[mine & ~is_call(live) & (live["seq"] > old["seq"][0])][-1:]
    if equal[0] < 15 or telling[0] < STRONG_TELLING or not len(newer):
        return None
    changed = np.flatnonzero((gprs(newer) != gprs(row))[0])
    cause = (
        f"the context resumed here is the one of event {int(old['seq'][0])}, which was resumed before; the thread was "
        f"interrupted again at event {int(newer['seq'][0])}, and what was saved then ({len(changed)} registers) is lost"
    )
    look = "whether the thread becomes visible to other CPUs before its save is complete, and which copy is loaded"
    found = (Difference("rip", int(newer["rip"][0]), int(row["rip"][0])),)
    return Draft("CW404", cause, look, found, match="thread"), newer
