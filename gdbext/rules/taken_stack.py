"""An entry from user mode on the stack of a thread that another CPU runs: CW303.

Where a thread's frames lie on its kernel stack is known from its entries and returns, and does not change where it
switches away and is taken up again. Until the CPU that it runs on switches, no other CPU may be entered there. It does
not matter in what way the thread itself was entered: a system call that pushes no frame uses the same stack. Only where
switches are seen on that CPU, where the one that lands is another thread for sure, and where both addresses are one
place (:mod:`gdbext.rules.common_memory`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from gdbext.events.columns import Columns, Indices, Joined, any_of, by_cpu, together
from gdbext.events.row import ROW, Batch, Flag, How, Kind, concat
from gdbext.ledger.compare import U64, Bools, is_user, mixed, space
from gdbext.rules.common_memory import CommonMemory
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.landing import look

CAPACITY: Final = 4096
"""Addresses of frames on IST stacks remembered, and threads that have switched away; beyond it the oldest of these are
forgotten."""


class _Home(NamedTuple):
    """Where a thread's frames lie, and who it is: a hash of the place; address space and FS base."""

    place: int
    space: int
    fs_base: int


class _Homes(NamedTuple):
    """The same for each of some rows, as far as known."""

    known: Bools
    place: U64
    space: U64
    fs_base: U64

    def at(self, position: int) -> _Home | None:
        if not self.known[position]:
            return None
        return _Home(int(self.place[position]), int(self.space[position]), int(self.fs_base[position]))

    def put(self, position: int, home: _Home | None) -> None:
        if home is not None:
            self.known[position] = True
            self.place[position], self.space[position], self.fs_base[position] = home


class TakenStackJudge:
    """Follows where the frames of the thread lie that each CPU runs."""

    def __init__(self, common: CommonMemory) -> None:
        self._common = common
        self._first: int | None = None
        """The CPU that was seen first, until another one is: one alone shares with nobody."""
        self._several = False
        self._here: Batch = np.zeros(0, ROW)
        """By CPU its last row, if where frames lie is known behind it, and nobody else's shows the same place later."""
        self._taken_up: dict[int, _Home] = {}
        """By CPU what is known at that row, where it is a switch."""
        self._away: dict[int, _Home] = {}
        """By RSP what is known of the threads that have switched away, the latest last."""
        self._switched: dict[int, int] = {}
        """By CPU the first switch that was seen."""
        self._ist: set[int] = set()
        """Where frames were pushed on IST stacks: those are no thread's."""
        self._told: set[int] = set()
        """Addresses that were told."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the entries from user code of a batch in order of ``seq``."""
        self._learn(batch)
        rows = self._behind_second(batch.take(np.flatnonzero(_shows(batch, self._ist) | _ends(batch))))
        if self._here.dtype != batch.dtype:
            self._here = np.zeros(0, batch.dtype)
        return self._judge(Joined(self._here, rows)) if len(rows) else []

    def _learn(self, batch: Columns) -> None:
        entries = (batch["kind"] == Kind.ENTRY) & (batch["flags"] & Flag.IST != 0)
        if entries.any() and len(self._ist) < CAPACITY:
            self._ist |= set(np.unique(batch["frame"][entries]).tolist())
        switches = np.flatnonzero(batch["kind"] == Kind.SWITCH_IN)
        cpus, first = np.unique(batch["cpu"][switches], return_index=True)
        for cpu, event in zip(cpus.tolist(), batch["seq"][switches[first]].tolist(), strict=True):
            self._switched.setdefault(cpu, event)

    def _behind_second(self, rows: Columns) -> Columns:
        """Those of `rows` from the first one on that shows a second CPU."""
        if self._several or not len(rows):
            return rows
        if self._first is None:
            self._first = int(rows["cpu"][0])
        others = np.flatnonzero(rows["cpu"] != self._first)
        self._several = bool(len(others))
        return rows.take(np.arange(others[0] if len(others) else len(rows), len(rows)))

    def _judge(self, rows: Columns) -> list[Judged]:
        """Judge those of `rows` behind the ones that were carried over."""
        shows = _shows(rows, self._ist)
        place = mixed(rows["frame"], self._common.spaces(rows), np.uint64(0))
        homes = _Homes(shows.copy(), place, space(rows).copy(), rows["fs_base"].copy())
        until, before = np.full(len(rows), len(rows)), np.full(len(rows), -1)
        here = np.zeros(len(rows), bool)
        for mine, _ in by_cpu(rows).values():
            until[mine[:-1]], before[mine[1:]] = mine[1:], mine[:-1]
            here[mine[-1]] = True
        self._follow(rows, homes, before)
        taken = self._taken(rows, homes, until, here)
        judged = [item for one, other in taken for item in self._tell(rows.row(one), rows.row(other))]
        kept = np.flatnonzero(here & homes.known).tolist()
        inherited = [(int(rows["cpu"][at]), homes.at(at)) for at in kept if not shows[at]]
        self._taken_up = {cpu: home for cpu, home in inherited if home is not None}
        self._here = concat([self._here[:0], *(rows.row(at).copy() for at in kept)])
        return judged

    def _follow(self, rows: Columns, homes: _Homes, before: Indices) -> None:
        """What is known of a thread that switches away is known again where it is taken up.

        before: for each row the position of its CPU's row before, -1: there is none.
        """
        kind, stack, cpu = rows["kind"], rows["rsp"], rows["cpu"]
        switches = np.flatnonzero((kind == Kind.SWITCH_OUT) | (kind == Kind.SWITCH_IN))
        for at in switches.tolist():
            if at < len(self._here):
                homes.put(at, self._taken_up.get(int(cpu[at])))
                continue
            home = self._away.pop(int(stack[at]), None)
            if kind[at] == Kind.SWITCH_IN:
                homes.put(at, home)
            elif before[at] >= 0 and (left := homes.at(int(before[at]))) is not None:
                self._away[int(stack[at])] = left
        for stack_left in list(self._away)[: max(len(self._away) - CAPACITY, 0)]:
            del self._away[stack_left]

    def _taken(self, rows: Columns, homes: _Homes, until: Indices, here: Bools) -> list[tuple[int, int]]:
        """Positions of the entries onto a stack that another CPU's thread has, and of the row that shows it.

        until: for each row where its CPU's next one is.  here: each CPU's last row; those behind which another one
        shows the same place are taken out.
        """
        signs = np.flatnonzero(homes.known)
        signs = signs[together(homes.place[signs])]
        same = homes.place[signs[1:]] == homes.place[signs[:-1]]
        first, second = signs[:-1][same], signs[1:][same]
        here[first] = False
        hits = (rows["kind"][second] == Kind.ENTRY) & (until[first] > second)
        hits &= rows["cpu"][first] != rows["cpu"][second]
        hits &= (homes.space[first] != homes.space[second]) | (homes.fs_base[first] != homes.fs_base[second])
        return sorted(zip(second[hits].tolist(), first[hits].tolist(), strict=True))

    def _tell(self, row: Batch, other: Batch) -> list[Judged]:
        """The verdict on the entry `row` on the stack that `other` shows to be another CPU's."""
        frame, event = int(row["frame"][0]), int(other["seq"][0])
        if frame in self._told or self._switched.get(int(other["cpu"][0]), event + 1) > event:
            return []
        self._told.add(frame)
        return [(_draft(row, other), row.copy(), None)]


def _shows(rows: Columns, ist: set[int]) -> Bools:
    """True for the entries from user code, and the returns to it, whose frame is on the thread's own stack."""
    kind, flags = rows["kind"], rows["flags"]
    shows: Bools = (kind == Kind.ENTRY) | ((kind == Kind.EXIT) & (rows["how"] == How.IRET))
    shows &= is_user(rows) & (rows["frame"] != 0) & (flags & (Flag.UNREADABLE | Flag.IST) == 0)
    shows &= ~any_of(rows["frame"], ist)
    return shows


def _ends(rows: Columns) -> Bools:
    """True where a CPU may begin to run another thread: it switches, or what it did was lost."""
    kind = rows["kind"]
    ends: Bools = (kind == Kind.SWITCH_OUT) | (kind == Kind.SWITCH_IN) | (rows["flags"] & Flag.STALE != 0)
    return ends


def _draft(row: Batch, other: Batch) -> Draft:
    frame, mine, owner = int(row["frame"][0]), int(row["cpu"][0]), int(other["cpu"][0])
    cause = (
        f"CPU {mine} was entered from user mode at {frame:#x}, on the stack of the thread with CR3 "
        f"{int(other['cr3'][0]):#x} that CPU {owner} has run since event {int(other['seq'][0])}: both use one stack, "
        "and one overwrites the other's frames"
    )
    return Draft("CW303", cause, look(cpus=2), (Difference("frame", None, frame),))
