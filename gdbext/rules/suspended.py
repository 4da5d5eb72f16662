"""An entry from user mode on the stack of a thread that is suspended there: CW303.

A thread that has switched away left its frames on its kernel stack, from the stack pointer it switched with upwards. If
user code is entered onto that stack meanwhile, it is another thread's, and the suspended one finds its frames
overwritten. That its stack is this one is known, not guessed: a thread of user code had its hardware frames, at its
entries or returns, at the address at which this one lands, since it was taken up or, if it made nothing but system
calls since then, before one of the times that it was left from the same part of the stack; a kernel thread was resumed,
before it switched away, with its stack pointer so close below that no handler has room there. That it was alive is
known once it goes on where it left; until then nothing is said, for a stack may be in use again after its thread has
ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from gdbext.arch.addresses import MASK64
from gdbext.events.columns import Array, Columns, Indices, by_cpu, grouped
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.ledger.compare import Bools, crosses
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.landing import look

STACK_BYTES: Final = 16384
"""A kernel stack is no larger than this."""
SMALL_STACK: Final = 4096
"""No kernel thread is resumed higher above where it then switches away, if both are on one stack."""
HANDLER_BYTES: Final = 128
"""No stack for entries from user mode has less below its frames."""
CAPACITY: Final = 1024
"""Suspended threads remembered; beyond it the oldest is forgotten."""


@dataclass(frozen=True, slots=True)
class _Running:
    """One CPU after the last batch. home: where the frames of the thread that runs lie on its kernel stack, 0 if that
    is not known; entered: its last event was this thread's entry from user code; landed: that pushed a frame there;
    resumed: its last event was the resume of kernel code with this stack pointer, else 0."""

    home: int = 0
    entered: bool = False
    landed: bool = False
    resumed: int = 0


@dataclass(slots=True)
class _Suspended:
    """A thread that switched away. top: highest address at which the frame of an entry is on its stack; event: of the
    switch; landed: the first entry of somebody else there since then."""

    top: int
    event: int
    landed: Batch | None = None


class SuspendedStackJudge:
    """Follows which stack each suspended thread left, and who is entered onto it."""

    def __init__(self) -> None:
        self._cpus: dict[int, _Running] = {}
        self._away: dict[int, _Suspended] = {}
        self._reaches: dict[int, list[tuple[int, int]]] = {}
        """By address of the frames on a stack: how far down threads were seen to leave it, and the event, the latest
        last."""
        self._passed: dict[int, int] = {}
        """Where frames were pushed whose handlers went on elsewhere, and the event that first showed it: these are no
        threads' stacks."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the entries, exits and switches of a batch in order of ``seq``."""
        rows = batch.take(np.flatnonzero(_relevant(batch)))
        judged: list[Judged] = []
        if not len(rows):
            return judged
        tops = self._tops(rows)
        positions = self._worth_a_look(rows, tops)
        columns = (column[positions].tolist() for column in (rows["kind"], rows["rsp"], rows["seq"], tops))
        for at, which, stack, event, top in zip(positions.tolist(), *columns, strict=True):
            if which == Kind.ENTRY:
                self._land(rows.row(at))
                continue
            thread = self._away.pop(stack, None)
            if which == Kind.SWITCH_IN:
                judged += self._goes_on(thread, event)
            elif top:
                self._away[stack] = _Suspended(top, event)
        for stack in list(self._away)[: max(len(self._away) - CAPACITY, 0)]:
            del self._away[stack]
        return judged

    def _tops(self, rows: Columns) -> Array:
        """For each SWITCH_OUT up to where the thread's stack is known to reach, 0 where nothing is known."""
        tops, called = np.zeros(len(rows), np.uint64), np.zeros(len(rows), bool)
        shown = called.copy()
        for cpu, (mine, its) in by_cpu(rows).items():
            tops[mine], shown[mine], called[mine], passed = self._tops_of(cpu, its)
            leaves = np.flatnonzero((passed != 0) & (its["kind"] == Kind.SWITCH_OUT))
            for home, event in zip(passed[leaves].tolist(), its["seq"][leaves].tolist(), strict=True):
                self._passed.setdefault(home, event)
        leaves = rows["kind"] == Kind.SWITCH_OUT
        tops[~leaves] = 0
        self._learn(rows, np.flatnonzero(leaves & shown), tops)
        unknown = np.flatnonzero(leaves & called & (tops == 0))
        tops[unknown] = self._known_tops(rows["rsp"][unknown], rows["seq"][unknown])
        return tops

    def _learn(self, rows: Columns, leaves: Indices, tops: Array) -> None:
        """Where threads leave their stacks whose `tops` their frames have shown."""
        columns = (column[leaves].tolist() for column in (tops, rows["rsp"], rows["seq"]))
        for top, stack, event in zip(*columns, strict=True):
            reach = self._reaches.setdefault(top, [])
            if not reach or stack < reach[-1][0]:
                reach.append((stack, event))
        for known in (self._reaches, self._passed):
            for top in list(known)[: max(len(known) - CAPACITY, 0)]:
                del known[top]

    def _known_tops(self, stacks: Array, events: Array) -> Array:
        """The tops of the stacks that threads leave at `stacks` in `events`, no further down than was seen before."""
        tops = np.zeros(len(stacks), np.uint64)
        homes = np.sort(np.array(list(self._reaches), np.uint64))
        above = np.searchsorted(homes, stacks)
        for home in np.flatnonzero(np.bincount(above, minlength=len(homes))[: len(homes)]).tolist():
            top = int(homes[home])
            its = np.flatnonzero((above == home) & (events < self._passed.get(top, MASK64)))
            for bottom, event in self._reaches[top]:
                tops[its[(stacks[its] >= bottom) & (events[its] > event)]] = top
        return tops

    def _tops_of(self, cpu: int, rows: Columns) -> tuple[Array, Bools, Bools, Array]:
        """The same for one CPU, given for each row as if it were a SWITCH_OUT; where frames have shown it; where user
        code was entered just before; and where the frame is that this pushed, if it is left behind, else 0."""
        before = self._cpus.get(cpu, _Running())
        kind, user, stack = rows["kind"], crosses(rows), rows["rsp"]
        entered = (kind == Kind.ENTRY) & user
        resumed = np.where((kind == Kind.EXIT) & ~user, stack, np.uint64(0))
        landed = entered & (rows["frame"] != 0) & ((rows["flags"] & Flag.IST) == 0)
        shows = landed | ((kind == Kind.EXIT) & user & (rows["how"] == How.IRET))
        shown, turned = _latest(shows), _latest((kind == Kind.SWITCH_OUT) | (kind == Kind.SWITCH_IN))
        home = np.where(shown > turned, rows["frame"][shown - 1], np.uint64(0))
        home[(shown == 0) & (turned == 0)] = before.home
        self._cpus[cpu] = _Running(int(home[-1]), bool(entered[-1]), bool(landed[-1]), int(resumed[-1]))
        columns = (before.home, home), (before.entered, entered), (before.landed, landed), (before.resumed, resumed)
        home, entered, landed, resumed = (_behind(first, column) for first, column in columns)
        of_user = entered & (home - stack - 1 < STACK_BYTES - 1)
        of_kernel = resumed - stack - 1 < SMALL_STACK - 1
        tops = np.where(of_user, home, np.where(of_kernel, resumed + np.uint64(HANDLER_BYTES - 1), np.uint64(0)))
        return tops, of_user, entered, np.where(landed & ~of_user, home, np.uint64(0))

    def _worth_a_look(self, rows: Columns, tops: Array) -> Indices:
        """Positions of the switches of threads that are followed, and of the entries onto their stacks; where nobody
        is entered there, only how each thread is left matters."""
        leaves = np.flatnonzero(tops)
        if not self._away and not len(leaves):
            return leaves
        bottoms = np.array([*self._away, *rows["rsp"][leaves].tolist()], np.uint64)
        waits = [(stack, thread.top) for stack, thread in self._away.items() if thread.landed is None]
        left = list(zip(rows["rsp"][leaves].tolist(), tops[leaves].tolist(), strict=True))
        kind = rows["kind"]
        chosen = np.zeros(len(rows), bool)
        switches = np.flatnonzero((kind == Kind.SWITCH_OUT) | (kind == Kind.SWITCH_IN))
        chosen[switches] = np.isin(rows["rsp"][switches], bottoms)
        lands = np.flatnonzero((kind == Kind.ENTRY) & crosses(rows) & ((rows["flags"] & Flag.IST) == 0))
        frames = grouped(rows["frame"][lands])
        inside = _within(frames.distinct, waits + left)
        chosen[lands] = inside[frames.which]
        if not inside.any() and len(waits) == len(self._away):
            followed = np.flatnonzero(chosen)
            return np.sort(followed[grouped(rows["rsp"][followed]).last])
        return np.flatnonzero(chosen)

    def _land(self, row: Batch) -> None:
        frame = int(row["frame"][0])
        for bottom, thread in self._away.items():
            if bottom <= frame <= thread.top and thread.landed is None:
                thread.landed = row.copy()

    def _goes_on(self, thread: _Suspended | None, event: int) -> list[Judged]:
        """A suspended thread, if one is known, goes on at `event`."""
        if thread is None or thread.landed is None or self._passed.get(int(thread.landed["frame"][0]), event) < event:
            return []
        return [(_draft(thread, thread.landed, event, len(self._cpus)), thread.landed, None)]


def _within(addresses: Array, spans: list[tuple[int, int]]) -> Bools:
    """Which of `addresses` lie in one of `spans`, each given by its first and its last byte."""
    if not spans:
        return np.zeros(len(addresses), bool)
    first, last = np.array(sorted(spans), np.uint64).T
    before = np.searchsorted(first, addresses, side="right")
    reach = np.maximum.accumulate(last)
    inside: Bools = (before > 0) & (addresses <= reach[before - 1])
    return inside


def _relevant(batch: Columns) -> Bools:
    kind = batch["kind"]
    context = ((kind == Kind.ENTRY) | (kind == Kind.EXIT)) & ((batch["flags"] & (Flag.UNREADABLE | Flag.SELF)) == 0)
    relevant: Bools = context | (kind == Kind.SWITCH_OUT) | (kind == Kind.SWITCH_IN)
    return relevant


def _latest(marked: Bools) -> npt.NDArray[np.int32]:
    """For each position the last marked one up to it, counted from 1; 0 if there is none."""
    numbers = np.arange(1, len(marked) + 1, dtype=np.int32)
    found: npt.NDArray[np.int32] = np.maximum.accumulate(np.where(marked, numbers, np.int32(0)))
    return found


def _behind(first: int, column: Array) -> Array:
    """The column one row later, with `first` in front."""
    return np.concatenate((np.array([first], column.dtype), column[:-1]))


def _draft(thread: _Suspended, landed: Batch, goes_on: int, cpus: int) -> Draft:
    frame = int(landed["frame"][0])
    cause = (
        f"the thread with CR3 {int(landed['cr3'][0]):#x} landed at {frame:#x}, on the stack of a thread that had "
        f"switched away at event {thread.event} and goes on there at event {goes_on}: the frames it left are "
        "overwritten"
    )
    return Draft("CW303", cause, look(cpus), (Difference("frame", None, frame),))
