"""A context resumed twice: CW404.

An exit that is no pending context, but bit for bit one that was resumed before, loads what an earlier save left: the
newer save of the same thread is not complete, or was made elsewhere.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.arch import flags as rf
from gdbext.arch.registers import GPR64
from gdbext.events.row import Batch, Kind
from gdbext.ledger.compare import agreement, gprs, is_call, is_user, keys
from gdbext.ledger.live import Live
from gdbext.rules.draft import Draft
from gdbext.rules.finding import Difference
from gdbext.rules.history import History
from gdbext.rules.verdicts import STRONG_TELLING

STACK_REACH: Final = 4096
"""Bytes by which the RSP of one thread may move between two interrupts and still be told for one stack's."""


def resumed_again(row: Batch, live: Live, history: History) -> tuple[Draft, Batch] | None:
    """Judge an exit (a batch of one) that matches no pending context: the draft and the newer context, or None.

    System calls are left out: fork's child and parent resume one context (but see :mod:`gdbext.rules.again`). The
    thread must have been interrupted again since: there is a pending context of the same address space and FS base
    that is newer. A pending system call does not count: it may be the last one of a process whose page tables are in
    use again. Registers that hold nothing tell nothing, for threads begin alike; but not where the newer context's
    handler is still at work on another CPU, on a thread that runs on the same stack.
    """
    if not len(live.newest):
        return None
    old = same_again(row, int(row["seq"][0]), history)
    if old is None:
        return None
    mine = live.thread
    if not bool(is_user(row)[0]):
        mine = mine[mine["rsp"] >> np.uint64(12) == row["rsp"] >> np.uint64(12)]
    newer = mine[~is_call(mine) & (mine["seq"] > old["seq"][0])][-1:]
    if not len(newer) or (_telling(old, row) < STRONG_TELLING and not _at_work(newer, row, history)):
        return None
    return lost_save(old, newer, row), newer


def lost_save(old: Batch, newer: Batch, row: Batch) -> Draft:
    """The exit `row` resumes the context `old` again, although its thread was interrupted in `newer` since."""
    changed = np.flatnonzero((gprs(newer) != gprs(row))[0])
    cause = (
        f"the context resumed here is the one of event {int(old['seq'][0])}, which was resumed before; the thread was "
        f"interrupted again at event {int(newer['seq'][0])}, and what was saved then ({len(changed)} registers) is lost"
    )
    look = "whether the thread becomes visible to other CPUs before its save is complete, and which copy is loaded"
    found = (Difference("rip", int(newer["rip"][0]), int(row["rip"][0])),)
    return Draft("CW404", cause, look, found, match="thread")


def same_again(row: Batch, before: int, history: History) -> Batch | None:
    """The last context interrupted before event `before`, not by a system call, that is bit for bit the one that the
    exit `row` resumes; None if there is none."""
    past = history.interrupted(int(keys(row)[0]), before)
    if not len(past):
        return None
    same = agreement(past, np.repeat(row, len(past)))[0] == len(GPR64) - 1
    same &= (past["rflags"] ^ row["rflags"]) & ~np.uint64(rf.RF) == 0
    found = np.flatnonzero(same)
    return past[found[-1:]] if len(found) else None


def _telling(old: Batch, row: Batch) -> int:
    return int(agreement(old, row)[1][0])


def _at_work(newer: Batch, row: Batch, history: History) -> bool:
    """True if the handler that interrupted `newer` runs on another CPU, and the thread's stack is the one resumed."""
    if newer["cpu"][0] == row["cpu"][0] or abs(int(newer["rsp"][0]) - int(row["rsp"][0])) >= STACK_REACH:
        return False
    past = history.before(int(row["seq"][0]))
    left = (past["kind"] == Kind.EXIT) & (past["cpu"] == newer["cpu"]) & (past["seq"] > newer["seq"])
    return not bool(left.any())
