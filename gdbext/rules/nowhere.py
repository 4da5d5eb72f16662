"""A thread that is taken up and goes on where no kernel code is: CW403.

The first thing that its CPU does behind the switch is a page fault on the instruction itself, in the page of address 0
or, where the kernel lies in the upper half of the address space, in the lower one; or, where the page of address 0 is
mapped, what it holds is run until it faults. What it returned to was no return address: somebody else used its stack,
or what was kept of it was not whole. Behind anything but a switch a call through a null pointer looks the same, and is
not judged.

Likewise a thread that cannot return at all, because what lies on its stack is no address, or no selector beside one (a
general protection fault at a ``ret`` or ``lret``), and one whose stack pointer is there: the CPU cannot push there what
it was about to push, and a double fault comes of it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.arch.vectors import DF, GP, PF, UD
from gdbext.code.disasm import Code, Flow
from gdbext.events.columns import Columns, any_of
from gdbext.events.row import Batch, Flag, Kind
from gdbext.ledger.compare import U64, Bools, contexts, is_user, page_tables
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.guest import GuestView
from gdbext.rules.history import TURNS, History

PAGE: Final = 4096
PUSHED: Final = 256
"""No push of the CPU's, and no frame of a function's first steps, goes further below RSP."""
_LOOK: Final = (
    "who else used this stack, or the memory in which the thread is kept, since it switched away: a second thread or "
    "CPU on the stack (RSP0, the stack that system calls take), memory freed too early, or a thread that was taken up "
    "before it was saved"
)
UPPER: Final = np.uint64(63)
"""The bit that tells the halves of a 64-bit address space apart."""


class NowhereJudge:
    """Looks at faults of kernel code on the instruction to run, at returns that fault, and at double faults."""

    def __init__(self, history: History, guest: GuestView) -> None:
        self._history = history
        self._codes = {64: Code(guest.read, 64), 32: Code(guest.read, 32)}

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the page faults and double faults of a batch."""
        rows = contexts(batch)
        faults = (rows["kind"] == Kind.ENTRY) & any_of(rows["vector"], (UD, DF, GP, PF)) & ~is_user(rows)
        at = np.flatnonzero(faults & ((rows["flags"] & Flag.UNREADABLE) == 0))
        if not len(at):
            return []
        rows = rows.take(at)
        vector, missing, rip, rsp = rows["vector"], rows["cr2"], rows["rip"], rows["rsp"]
        code = (vector == PF) & (rip == missing) & _nowhere(rows, rip) | any_of(vector, (UD, PF, GP)) & _null(rows, rip)
        stack = (vector == DF) & (rsp - missing - np.uint64(1) < np.uint64(PUSHED)) & _nowhere(rows, rsp)
        judged: list[Judged] = []
        for found, draft in ((code, _code), (stack, _stack), (vector == GP, _return)):
            for row in (rows.row(index) for index in np.flatnonzero(found).tolist()):
                switch = self._switched(row)
                if switch is not None and (draft is not _return or self._returns(row)):
                    judged.append((draft(row, switch), row.copy(), None))
        return judged

    def _returns(self, row: Batch) -> bool:
        """True if the instruction at which the entry `row` came is a return."""
        insn = self._codes[64 if row["mode"][0] == 64 else 32].insn(int(row["rip"][0]))
        return insn is not None and insn.flow is Flow.RETURN

    def _switched(self, row: Batch) -> Batch | None:
        """The switch, if only to other page tables, that was seen last of the CPU before the entry `row`, or None."""
        past = self._history.before(int(row["seq"][0]))
        past = past[past["cpu"] == row["cpu"]]
        turned = any_of(past["kind"], (Kind.ENTRY, Kind.EXIT))
        before = past[turned][-1:]
        last = past[turned | any_of(past["kind"], (Kind.CR3, *TURNS))][-1:]
        if not len(last) or last["kind"][0] in TURNS:
            return last if len(last) else None
        moved = last["kind"][0] == Kind.CR3 and len(before) and page_tables(before) != page_tables(row)
        return last if moved else None


def _nowhere(rows: Columns, address: U64) -> Bools:
    """True where no kernel code and no kernel stack is at `address`, by where the handler lies."""
    lower = (rows["mode"] == 64) & (address >> UPPER < rows["pc"] >> UPPER)
    nowhere: Bools = lower | _null(rows, address)
    return nowhere


def _null(rows: Columns, address: U64) -> Bools:
    """True where the address is in the page of address 0 and the handler is not."""
    null: Bools = (address < PAGE) & (rows["pc"] >= PAGE)
    return null


def _taken_up(row: Batch, switch: Batch) -> str:
    return f"the thread that CPU {int(row['cpu'][0])} takes up by the switch of event {int(switch['seq'][0])}"


def _code(row: Batch, switch: Batch) -> Draft:
    rip = int(row["rip"][0])
    what = f"goes on at {rip:#x}, where no kernel code is: what it returned to is no return address"
    return Draft("CW403", f"{_taken_up(row, switch)} {what}", _LOOK, (Difference("rip", None, rip),))


def _stack(row: Batch, switch: Batch) -> Draft:
    rsp = int(row["rsp"][0])
    what = f"has {rsp:#x} for its stack pointer, where no stack is: nothing can be pushed there"
    return Draft("CW403", f"{_taken_up(row, switch)} {what}", _LOOK, (Difference("rsp", None, rsp),))


def _return(row: Batch, switch: Batch) -> Draft:
    rip, rsp = int(row["rip"][0]), int(row["rsp"][0])
    what = f"cannot return at {rip:#x}: what lies at {rsp:#x} on its stack is no return address"
    return Draft("CW403", f"{_taken_up(row, switch)} {what}", _LOOK, (Difference("rip", None, rip),))
