"""An entry from user mode on the stack of a thread that is suspended there: CW303.

A thread that has switched away in a system call or a handler left its frames on its kernel stack, from the stack
pointer it switched with up to the stack's top. If user code is entered onto that stack meanwhile, it is another
thread's, and the suspended one finds its frames overwritten. That its stack is this one is known, not guessed: the
thread's own entries, or its returns to user code, had their hardware frames at the address at which this one lands.
That it was alive is known once it goes on where it left; until then nothing is said, for a stack may be in use again
after its thread has ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.ledger.compare import Bools, is_user, space
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference

STACK_BYTES: Final = 16384
"""A kernel stack is no larger than this."""
CAPACITY: Final = 1024
"""Suspended threads remembered; beyond it the oldest is forgotten."""


@dataclass(slots=True)
class _Running:
    """One CPU. home: where the frames of the thread that runs lie on its kernel stack, None if that is not known;
    entered: the last event of the CPU was this thread's entry from user code."""

    home: int | None = None
    entered: bool = False


@dataclass(slots=True)
class _Suspended:
    """A thread that switched away. home: its frames' address; event: of the switch; landed: the first entry of
    somebody else there since then."""

    home: int
    event: int
    landed: Batch | None = None


@dataclass(slots=True)
class SuspendedStackJudge:
    """Follows which stack each suspended thread left, and who is entered onto it."""

    _cpus: dict[int, _Running] = field(default_factory=dict)
    _away: dict[int, _Suspended] = field(default_factory=dict)

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the entries, exits and switches of a batch; without switches there is nothing to follow."""
        kind = batch["kind"]
        if not self._away and not (kind == Kind.SWITCH_OUT).any():
            return []
        judged: list[Judged] = []
        for index in np.flatnonzero(_relevant(batch)).tolist():
            row = batch.row(index)
            cpu = self._cpus.setdefault(int(row["cpu"][0]), _Running())
            which = int(row["kind"][0])
            if which == Kind.ENTRY:
                self._enter(cpu, row)
            elif which == Kind.EXIT:
                self._leave(cpu, row)
            elif which == Kind.SWITCH_OUT:
                self._switch_out(cpu, row)
            else:
                judged += self._switch_in(cpu, row)
        return judged

    def _enter(self, cpu: _Running, row: Batch) -> None:
        cpu.entered = bool(is_user(row)[0])
        if not cpu.entered or row["flags"][0] & Flag.IST:
            return
        frame = int(row["frame"][0])
        if not frame:
            return
        for thread in self._away.values():
            if thread.home == frame and thread.landed is None:
                thread.landed = row.copy()
        cpu.home = frame

    def _leave(self, cpu: _Running, row: Batch) -> None:
        """A return to user mode by iret pops the frame of the thread that runs; by sysret it shows nothing new."""
        cpu.entered = False
        if bool(is_user(row)[0]) and row["how"][0] == How.IRET:
            cpu.home = int(row["frame"][0])

    def _switch_out(self, cpu: _Running, row: Batch) -> None:
        left = int(row["rsp"][0])
        self._away.pop(left, None)
        if cpu.entered and cpu.home is not None and 0 < cpu.home - left < STACK_BYTES:
            self._away[left] = _Suspended(cpu.home, int(row["seq"][0]))
            if len(self._away) > CAPACITY:
                del self._away[next(iter(self._away))]
        cpu.home, cpu.entered = None, False

    def _switch_in(self, cpu: _Running, row: Batch) -> list[Judged]:
        cpu.home, cpu.entered = None, False
        thread = self._away.pop(int(row["rsp"][0]), None)
        if thread is None or thread.landed is None:
            return []
        return [(_draft(thread, row), thread.landed, None)]


def _relevant(batch: Columns) -> Bools:
    kind = batch["kind"]
    context = ((kind == Kind.ENTRY) | (kind == Kind.EXIT)) & ((batch["flags"] & (Flag.UNREADABLE | Flag.SELF)) == 0)
    relevant: Bools = context | (kind == Kind.SWITCH_OUT) | (kind == Kind.SWITCH_IN)
    return relevant


def _draft(thread: _Suspended, row: Batch) -> Draft:
    landed = thread.landed
    assert landed is not None
    cause = (
        f"the thread with CR3 {int(space(landed)[0]):#x} landed at {thread.home:#x}, on the stack of a thread that had "
        f"switched away at event {thread.event} and goes on there at event {int(row['seq'][0])}: the frames it left "
        "are overwritten"
    )
    look = "who writes RSP0 of the TSS (ESP0): on every switch, before the first return to user mode"
    return Draft("CW303", cause, look, (Difference("frame", 0, thread.home),))
