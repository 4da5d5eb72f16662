"""A fast system call that returns where it was made, on another stack (CW106).

``syscall`` and ``sysenter`` save no stack pointer: the kernel returns on one that it has loaded from wherever it kept
the caller's, by ``sysret``, ``sysexit`` or ``iret``. A wrong one makes the return look like the first run of a thread,
which begins behind its maker's call on a stack of its own. But that thread runs only after a switch to it: where the
maker itself runs, because it never went away or has come back, its call is what returns.

So it is with a thread that was interrupted where threads begin (CW101): all that tells it from another one that begins
there is its stack pointer.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.arch.addresses import CR3_COPIES, CR3_TABLE_32, CR3_TABLES
from gdbext.arch.registers import GPR64
from gdbext.events.row import Batch, How, Kind
from gdbext.ledger.compare import BIT, Law, differences
from gdbext.ledger.pending import UNLIKE
from gdbext.rules.fastcalls import INT_BYTES, PAGE_OFFSET, FastCalls, is_fast
from gdbext.rules.history import SWITCHES, TURNS, History

_TABLES_64: Final = CR3_TABLES & ~CR3_COPIES
"""The bits of a 64-bit kernel's CR3 that tell processes apart: page-table isolation has two tables side by side."""
_OTHERS: Final = sum(int(BIT[name]) for name in GPR64 if name != "rsp")
"""The general registers besides RSP."""


def call_on_another_stack(
    row: Batch, call: Batch, history: History, fast: FastCalls, law: Law
) -> tuple[Batch, int] | None:
    """The fast call that `row`, an exit to user code (a batch of one), ends with another RSP, and what differs (mask).

    call: the last context of its thread that waits (a batch of one, or empty). If it was interrupted, it must be told
    by its FS base, RSP alone may differ, and only switches of stacks show that no other thread runs.
    """
    if not len(call):
        return None
    if call["how"][0] not in (How.SYSCALL, How.SYSENTER):
        told = call["rip"][0] == row["rip"][0] and call["fs_base"][0] != 0 and _switches(row, history)
        lost = int(differences(call, row, law)[0]) if told else 0
        return (call, lost) if lost == int(BIT["rsp"]) and _runs(call, row, history) else None
    if not _returns(call, row) or call["rsp"][0] == row["rsp"][0] or not _runs(call, row, history):
        return None
    landed = row.copy()
    landed["rip"] = call["rip"]
    mask = int(differences(call, landed, law)[0]) & ~fast.may_change(call)
    return (call, mask) if (mask & _OTHERS).bit_count() <= UNLIKE else None


def _returns(call: Batch, row: Batch) -> bool:
    """True if `row` goes to where `call` returns to: behind it, or behind the ``int n`` that follows."""
    ahead = int(row["rip"][0]) - int(call["rip"][0])
    return not ahead or (ahead & int(PAGE_OFFSET) in (0, INT_BYTES) and bool(is_fast(call)[0]))


def _runs(call: Batch, row: Batch, history: History) -> bool:
    """True if the thread that made `call` is known to run on the CPU of the exit `row`.

    It is followed from one switch to the next: the event in which a thread comes back names the one in which it went
    away. Page tables that are loaded while it runs may mean another way to switch, unless they are its own again, or
    those beside them (page-table isolation). CPUs that were never seen to switch tell nothing.
    """
    past = history.before(int(row["seq"][0]))
    if not len(past) or past["seq"][0] > call["seq"][0]:
        return False
    cpu, bits = int(row["cpu"][0]), np.uint64(_TABLES_64 if call["mode"][0] == 64 else CR3_TABLE_32)
    seen = past[np.isin(past["kind"], SWITCHES)]
    if not ((seen["cpu"] == cpu) & ((seen["kind"] != Kind.CR3) | ((seen["value"] ^ seen["cr3"]) & bits != 0))).any():
        return False
    at, away, astray = int(call["cpu"][0]), 0, False
    since = seen[seen["seq"] > call["seq"]]
    others = ((since["value"] ^ call["cr3"]) & bits != 0).tolist()
    columns = (since[name].tolist() for name in ("kind", "cpu", "seq", "match"))
    for kind, where, event, match, other in zip(*columns, others, strict=True):
        if away and kind == Kind.SWITCH_IN and match == away:
            at, away, astray = where, 0, False
        elif not away and where == at and kind == Kind.SWITCH_OUT:
            away = event
        elif not away and where == at and kind == Kind.CR3:
            astray = other
    return at == cpu and not away and not astray


def _switches(row: Batch, history: History) -> bool:
    """True if the CPU of `row` was seen to switch from one stack to another."""
    past = history.before(int(row["seq"][0]))
    return bool((np.isin(past["kind"], TURNS) & (past["cpu"] == row["cpu"])).any())


def switched_since(call: Batch, row: Batch, history: History) -> bool:
    """True unless the CPU of `row` made `call` and runs the same thread still, having been seen to switch before.

    What it switched to inside a handler that has returned to the kernel code which it interrupted since the call (a
    stack for soft interrupts, another thread and back) is over.
    """
    cpu, made, now = int(call["cpu"][0]), int(call["seq"][0]), int(row["seq"][0])
    last = history.last_switch(cpu, now)
    if cpu != row["cpu"][0] or not last:
        return True
    if last <= made:
        return False
    past = history.before(now)
    if past["seq"][0] > made:
        return True
    since = past[(past["cpu"] == cpu) & (past["seq"] > made)]
    back = since[(since["kind"] == Kind.EXIT) & (since["match"] > made)]
    switches = since["seq"][history.switches(since)]
    inside = (back["match"] < switches[:, None]) & (switches[:, None] < back["seq"])
    return not bool(inside.any(axis=1).all())
