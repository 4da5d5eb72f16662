"""An entry from user mode on the stack of a thread that another CPU runs: CW303.

Where a thread's frames lie on its kernel stack is known from its entries and returns. Until the CPU that it runs on
switches, no other CPU may be entered there. It does not matter in what way the thread itself was entered: a system call
that pushes no frame uses the same stack. Only where switches are seen on that CPU, where the one that lands is another
thread for sure, and where both addresses are one place (:mod:`gdbext.rules.common_memory`).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.events.columns import Columns, Indices, Joined, any_of, by_cpu, together
from gdbext.events.row import ROW, Batch, Flag, How, Kind, concat
from gdbext.ledger.compare import Bools, contexts, is_user, mixed, of_contexts, space
from gdbext.rules.common_memory import CommonMemory
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.landing import look

CAPACITY: Final = 4096
"""Addresses of frames on IST stacks remembered."""


class TakenStackJudge:
    """Follows where the frames of the thread lie that each CPU runs."""

    def __init__(self, common: CommonMemory) -> None:
        self._common = common
        self._here: Batch = np.zeros(0, ROW)
        """By CPU the last row that shows where frames lie, if nobody else's shows the same place later."""
        self._switched: dict[int, int] = {}
        """By CPU the first switch that was seen."""
        self._ist: set[int] = set()
        """Where frames were pushed on IST stacks: those are no thread's."""
        self._told: set[int] = set()
        """Addresses that were told."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the entries from user code of a batch in order of ``seq``."""
        self._learn(batch)
        if self._here.dtype != batch.dtype:
            self._here = np.zeros(0, batch.dtype)
        shows = of_contexts(batch, _shows(contexts(batch), self._ist))
        rows = Joined(self._here, batch.take(np.flatnonzero(shows | _ends(batch))))
        return self._judge(rows) if self._switched and len(rows) > len(self._here) else []

    def _learn(self, batch: Columns) -> None:
        rows = contexts(batch)
        entries = (rows["kind"] == Kind.ENTRY) & (rows["flags"] & Flag.IST != 0)
        if entries.any() and len(self._ist) < CAPACITY:
            self._ist |= set(np.unique(rows["frame"][entries]).tolist())
        switches = np.flatnonzero(batch["kind"] == Kind.SWITCH_IN)
        cpus, first = np.unique(batch["cpu"][switches], return_index=True)
        for cpu, event in zip(cpus.tolist(), batch["seq"][switches[first]].tolist(), strict=True):
            self._switched.setdefault(cpu, event)

    def _judge(self, rows: Columns) -> list[Judged]:
        """Judge those of `rows` behind the ones that were carried over."""
        until, here = np.full(len(rows), len(rows)), np.zeros(len(rows), bool)
        cpus = by_cpu(rows)
        for mine, _ in cpus.values():
            until[mine[:-1]] = mine[1:]
            here[mine[-1]] = True
        pairs = self._pairs(rows, np.flatnonzero(_shows(rows, self._ist)), until, here) if len(cpus) > 1 else []
        judged = [item for one, other in pairs for item in self._tell(rows.row(one), rows.row(other))]
        last = np.flatnonzero(here)
        kept = last[_shows(rows.take(last), self._ist)]
        self._here = concat([self._here[:0], *(rows.row(at).copy() for at in kept.tolist())])
        return judged

    def _pairs(self, rows: Columns, signs: Indices, until: Indices, here: Bools) -> list[tuple[int, int]]:
        """Positions of the entries onto a stack that another CPU's thread has, and of the row that shows it.

        signs: rows that show where frames lie.  until: for each row where its CPU's next one is.  here: each CPU's last
        row; those behind which another one shows the same place are taken out.
        """
        shown = rows.take(signs)
        place = mixed(shown["frame"], self._common.spaces(shown), np.uint64(0))
        order = together(place)
        signs, place = signs[order], place[order]
        same = place[1:] == place[:-1]
        here[signs[:-1][same]] = False
        first, second = signs[:-1][same], signs[1:][same]
        taken = (rows["kind"][second] == Kind.ENTRY) & (until[first] > second)
        taken &= rows["cpu"][first] != rows["cpu"][second]
        taken &= (space(rows)[first] != space(rows)[second]) | (rows["fs_base"][first] != rows["fs_base"][second])
        return sorted(zip(second[taken].tolist(), first[taken].tolist(), strict=True))

    def _tell(self, row: Batch, other: Batch) -> list[Judged]:
        """The verdict on the entry `row` on the stack that `other` shows to be another CPU's."""
        frame, event = int(row["frame"][0]), int(other["seq"][0])
        if frame in self._told or self._switched.get(int(other["cpu"][0]), event) >= event:
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
