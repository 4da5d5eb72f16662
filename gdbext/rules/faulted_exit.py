"""An exit that faults on what it pops, because what it pops was saved elsewhere: CW402 of a context that has moved.

A thread whose context is kept where its stack begins (seL4's idle thread on ia32) pushes, and is interrupted: the CPU
pushes its frame that much lower, and the entry code saves all else below that. The exit loads from where the context
should be. Where the words it takes there are no selectors, it faults on one, often before its ``iret``; and its code
tells where that ``iret`` would have popped.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gdbext.arch.frames import word_size
from gdbext.arch.vectors import GP, NP, SS
from gdbext.code.disasm import Code
from gdbext.code.state import State
from gdbext.code.values import Start
from gdbext.code.walk import End, Walker
from gdbext.events.columns import Columns, any_of
from gdbext.events.row import Batch, Flag, Kind
from gdbext.ledger.compare import contexts, is_user
from gdbext.rules.draft import Judged
from gdbext.rules.frames import judge_moved
from gdbext.rules.guest import GuestView
from gdbext.rules.history import History


class FaultedExitJudge:
    """Looks at faults of kernel code on selectors."""

    def __init__(self, history: History, guest: GuestView) -> None:
        self._history = history
        self._codes = {bits: Code(guest.read, bits) for bits in (32, 64)}

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge a batch in order of ``seq``."""
        rows = contexts(batch)
        faults = (rows["kind"] == Kind.ENTRY) & any_of(rows["vector"], (NP, SS, GP)) & ~is_user(rows)
        at = np.flatnonzero(faults & ((rows["flags"] & Flag.UNREADABLE) == 0))
        return [judged for index in at.tolist() for judged in self._judge(rows.row(index))]

    def _judge(self, fault: Batch) -> Iterator[Judged]:
        frame = self._frame_ahead(fault)
        if frame is None:
            return
        leaving = fault.copy()
        leaving["frame"] = frame
        past = self._history.before(int(fault["seq"][0]))
        mine = past[past["cpu"] == fault["cpu"]]
        inner = (mine["kind"] == Kind.ENTRY) & ~is_user(mine) & (mine["frame"] < frame)
        over = np.isin(mine["seq"], past["match"][past["kind"] == Kind.EXIT])
        for at in np.flatnonzero(inner & ~over)[::-1].tolist():
            entry = mine[at : at + 1]
            draft = judge_moved(entry, leaving, mine[:at])
            if draft is not None:
                yield draft, fault.copy(), entry
                return

    def _frame_ahead(self, fault: Batch) -> int | None:
        """Where the exit that faulted would have popped its frame, or None if it is none."""
        bits = 64 if fault["mode"][0] == 64 else 32
        code = self._codes[bits]
        for path in Walker(code).run(int(fault["rip"][0]), State(bits)):
            leaving = code.insn(path.address)
            rsp = path.state.rsp
            if path.end is End.EXIT and leaving is not None and leaving.name.startswith("iret"):
                popped = rsp.disp if rsp.atom == Start("rsp") else None
                return None if popped is None else (int(fault["rsp"][0]) + popped) % (1 << 8 * word_size(bits))
        return None
