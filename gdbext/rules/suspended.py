"""An entry from user mode on the stack of a thread that is suspended there: CW303.

A thread that has switched away in a system call or a handler left its frames on its kernel stack, from the stack
pointer it switched with up to the stack's top. If user code is entered onto that stack meanwhile, it is another
thread's, and the suspended one finds its frames overwritten. That its stack is this one is known, not guessed: the
thread's own entries, or its returns to user code, had their hardware frames at the address at which this one lands.
That it was alive is known once it goes on where it left; until then nothing is said, for a stack may be in use again
after its thread has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from gdbext.events.columns import Array, Columns
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.ledger.compare import Bools, is_user
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference

STACK_BYTES: Final = 16384
"""A kernel stack is no larger than this."""
CAPACITY: Final = 1024
"""Suspended threads remembered; beyond it the oldest is forgotten."""


@dataclass(frozen=True, slots=True)
class _Running:
    """One CPU after the last batch. home: where the frames of the thread that runs lie on its kernel stack, 0 if that
    is not known; entered: its last event was this thread's entry from user code."""

    home: int = 0
    entered: bool = False


@dataclass(slots=True)
class _Suspended:
    """A thread that switched away. home: its frames' address; event: of the switch; landed: the first entry of
    somebody else there since then."""

    home: int
    event: int
    landed: Batch | None = None


class SuspendedStackJudge:
    """Follows which stack each suspended thread left, and who is entered onto it."""

    def __init__(self) -> None:
        self._cpus: dict[int, _Running] = {}
        self._away: dict[int, _Suspended] = {}

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the entries, exits and switches of a batch in order of ``seq``."""
        rows = batch.take(np.flatnonzero(_relevant(batch)))
        judged: list[Judged] = []
        if not len(rows):
            return judged
        homes = self._homes(rows)
        for at in self._worth_a_look(rows, homes):
            row, home, stack = rows.row(at), int(homes[at]), int(rows["rsp"][at])
            which = int(row["kind"][0])
            if which == Kind.ENTRY:
                self._land(row)
            elif which == Kind.SWITCH_IN:
                judged += self._switch_in(row)
            else:
                self._away.pop(stack, None)
                if home:
                    self._away[stack] = _Suspended(home, int(row["seq"][0]))
        for stack in list(self._away)[: max(len(self._away) - CAPACITY, 0)]:
            del self._away[stack]
        return judged

    def _homes(self, rows: Columns) -> Array:
        """For each SWITCH_OUT that a thread makes in a handler or system call of its own: where its frames lie, if that
        is on the stack it leaves; else 0."""
        homes = np.zeros(len(rows), np.uint64)
        cpus = rows["cpu"]
        for cpu in np.unique(cpus).tolist():
            mine = np.flatnonzero(cpus == cpu)
            homes[mine] = self._homes_of(cpu, rows.take(mine))
        depth = homes - rows["rsp"]
        homes[(rows["kind"] != Kind.SWITCH_OUT) | (depth == 0) | (depth >= STACK_BYTES)] = 0
        return homes

    def _homes_of(self, cpu: int, rows: Columns) -> Array:
        """Where the running thread's frames lie before each row of one CPU, 0 unless the row before is its entry."""
        before = self._cpus.get(cpu, _Running())
        kind, user = rows["kind"], is_user(rows)
        entered = (kind == Kind.ENTRY) & user
        landed = entered & (rows["frame"] != 0) & ((rows["flags"] & Flag.IST) == 0)
        shows = landed | ((kind == Kind.EXIT) & user & (rows["how"] == How.IRET))
        shown, turned = _latest(shows), _latest((kind == Kind.SWITCH_OUT) | (kind == Kind.SWITCH_IN))
        home = np.where(shown > turned, rows["frame"][shown - 1], np.uint64(0))
        home[(shown == 0) & (turned == 0)] = before.home
        self._cpus[cpu] = _Running(int(home[-1]), bool(entered[-1]))
        home = np.concatenate((np.array([before.home], np.uint64), home[:-1]))
        home[~np.concatenate(([before.entered], entered[:-1]))] = 0
        return home

    def _worth_a_look(self, rows: Columns, homes: Array) -> list[int]:
        """Positions of the switches of threads that are followed, and of the entries where their frames lie."""
        stacks = {*self._away, *rows["rsp"][homes != 0].tolist()}
        if not stacks:
            return []
        places = {*(thread.home for thread in self._away.values()), *homes[homes != 0].tolist()}
        kind = rows["kind"]
        switches = (kind == Kind.SWITCH_OUT) | (kind == Kind.SWITCH_IN)
        chosen = switches & np.isin(rows["rsp"], np.array(list(stacks), np.uint64))
        lands = (kind == Kind.ENTRY) & is_user(rows) & ((rows["flags"] & Flag.IST) == 0)
        chosen |= lands & np.isin(rows["frame"], np.array(list(places), np.uint64))
        positions: list[int] = np.flatnonzero(chosen).tolist()
        return positions

    def _land(self, row: Batch) -> None:
        for thread in self._away.values():
            if thread.home == int(row["frame"][0]) and thread.landed is None:
                thread.landed = row.copy()

    def _switch_in(self, row: Batch) -> list[Judged]:
        thread = self._away.pop(int(row["rsp"][0]), None)
        if thread is None or thread.landed is None:
            return []
        return [(_draft(thread, thread.landed, int(row["seq"][0])), thread.landed, None)]


def _relevant(batch: Columns) -> Bools:
    kind = batch["kind"]
    context = ((kind == Kind.ENTRY) | (kind == Kind.EXIT)) & ((batch["flags"] & (Flag.UNREADABLE | Flag.SELF)) == 0)
    relevant: Bools = context | (kind == Kind.SWITCH_OUT) | (kind == Kind.SWITCH_IN)
    return relevant


def _latest(marked: Bools) -> npt.NDArray[np.intp]:
    """For each position the last marked one up to it, counted from 1; 0 if there is none."""
    found: npt.NDArray[np.intp] = np.maximum.accumulate(np.where(marked, np.arange(1, len(marked) + 1), 0))
    return found


def _draft(thread: _Suspended, landed: Batch, goes_on: int) -> Draft:
    cause = (
        f"the thread with CR3 {int(landed['cr3'][0]):#x} landed at {thread.home:#x}, on the stack of a thread that had "
        f"switched away at event {thread.event} and goes on there at event {goes_on}: the frames it left are "
        "overwritten"
    )
    look = "who writes RSP0 of the TSS (ESP0): on every switch, before the first return to user mode"
    return Draft("CW303", cause, look, (Difference("frame", 0, thread.home),))
