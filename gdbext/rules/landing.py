"""The stack an entry from user mode lands on: CW303.

No data structure is known. A kernel with a stack per thread shows itself: each thread's entries push their frame at
one address that no other thread uses. A thread known that way that lands on another's address, while that one lives
(it enters again later, or runs in user code on another CPU at that time), ran with the wrong RSP0. So did one where
either of the two comes back wrong: the loss then follows from where it landed. A stack that several threads share (one
per CPU) is never judged, nor one whose owner may have died, nor a thread that may be another one by now
(:mod:`gdbext.rules.renewed`), nor what lands on the only stack of its CPU: a thread that
came from another CPU lands there if the stacks are the CPUs'. Within one address space only a loss tells, for there it
may be the thread itself, under another FS base.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from gdbext.events.columns import Array, Columns, Indices, by_cpu, grouped
from gdbext.events.row import Batch, Flag, Kind
from gdbext.ledger.compare import Bools, contexts, is_user, mixed, space
from gdbext.rules.codes import ERROR
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.renewed import Renewals, Thread

STEADY: Final = 5
"""Entries at one address after which it counts as a thread's own."""
CAPACITY: Final = 4096
_LOOK: Final = "who writes RSP0 of the TSS (ESP0): on every switch, before the first return to user mode"
_LOOK_CPUS: Final = f"{_LOOK}; every CPU needs a TSS of its own, and no two the same stack"

_FOLLOW: Final = frozenset(("CW101", "CW102", "CW103", "CW104", "CW107", "CW204", "CW302", "CW404"))
"""What is found of a thread whose frame is not where it was pushed, or was overwritten."""


@dataclass(slots=True)
class _Own:
    """Where a thread lands: the address, how often in a row."""

    frame: int
    count: int


@dataclass(frozen=True, slots=True)
class _Suspected:
    """A thread that landed on another one's stack, at `frame`, first at `event`, and what is said if that one lives."""

    thread: Thread
    frame: int
    event: int
    found: Judged


class LandingJudge:
    """Learns where each thread's frames land and judges the ones that land on another's."""

    def __init__(self) -> None:
        self._own: dict[Thread, _Own] = {}
        self._owner: dict[int, Thread | None] = {}
        self._suspected: dict[Thread, list[_Suspected]] = {}
        """By owner of the stack."""
        self._stacks: dict[int, set[int]] = {}
        """By CPU: where frames have landed."""
        self._renewals = Renewals()
        self._runs: dict[int, Thread | None] = {}
        """By CPU: the thread whose user code it returned to last, None where it was entered since."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the entries from user mode that pushed a frame; IST stacks belong to nobody."""
        rows = contexts(batch)
        landings = np.flatnonzero(_landings(rows))
        renewed = deque(self._renewals.feed(rows))
        judged = self._judge(rows, landings, renewed) if len(landings) else []
        self._forget(renewed)
        self._runs |= _last_left(rows)
        return judged

    def _judge(self, every: Columns, landings: Indices, renewed: deque[tuple[int, Thread]]) -> list[Judged]:
        """Judge those at `landings` among the contexts `every`, of whose threads those in `renewed` may be others from
        that position on; what is forgotten is taken out of it."""
        rows = every.take(landings)
        judged: list[Judged] = []
        spaces, bases, frames, cpus = space(rows), rows["fs_base"], rows["frame"], rows["cpu"]
        for at in self._unsettled(spaces, bases, frames, cpus, {thread for _, thread in renewed}):
            self._forget(renewed, int(landings[at]))
            thread, frame, cpu = (int(spaces[at]), int(bases[at])), int(frames[at]), int(cpus[at])
            self._note_stack(cpu, frame)
            judged += self._owner_lives(thread)
            own = self._own.get(thread)
            if own is not None and own.frame == frame:
                own.count += 1
                continue
            owner = self._landlord(thread, own, frame) if len(self._stacks[cpu]) > 1 else None
            if owner is None or own is None:
                self._settle(thread, frame)
            else:
                found = (_wrong_stack(thread, owner, own.frame, frame, len(self._stacks)), rows.row(at).copy(), None)
                if owner[0] != thread[0] and owner in self._running(every.take(np.arange(landings[at])), cpu):
                    judged.append(found)
                else:
                    self._suspect(owner, _Suspected(thread, frame, int(rows["seq"][at]), found))
        return judged

    def _forget(self, renewed: deque[tuple[int, Thread]], before: int | None = None) -> None:
        """Forget where those landed, alone, that may be other threads now; takes them out of `renewed`, in order, up to
        the position `before`."""
        while renewed and (before is None or renewed[0][0] < before):
            _, thread = renewed.popleft()
            own = self._own.get(thread)
            if own is not None and self._owner.get(own.frame) == thread:
                del self._own[thread], self._owner[own.frame]

    def _owner_lives(self, owner: Thread) -> list[Judged]:
        """The verdicts on those who landed on the stack of `owner`; in one address space both may be one thread."""
        known = self._suspected.pop(owner, [])
        doubtful = [one for one in known if one.thread[0] == owner[0]]
        if doubtful:
            self._suspected[owner] = doubtful
        return [one.found for one in known if one not in doubtful]

    def _suspect(self, owner: Thread, new: _Suspected) -> None:
        known = self._suspected.setdefault(owner, [])
        if all((old.thread, old.frame) != (new.thread, new.frame) for old in known):
            known.append(new)
        if len(self._suspected) > CAPACITY:
            del self._suspected[next(iter(self._suspected))]

    def explain(self, judged: Iterable[Judged]) -> list[Judged]:
        """What is said of the landings that explain why a context of `judged` came back wrong: its own, or another's
        on its frame meanwhile."""
        explained: list[Judged] = []
        for draft, row, entry in judged if self._suspected else ():
            if draft.severity == ERROR and draft.code in _FOLLOW and entry is not None and row["kind"][0] == Kind.EXIT:
                explained += self._explain(row, entry)
        return explained

    def _explain(self, row: Batch, entry: Batch) -> list[Judged]:
        thread, frame = (int(space(entry)[0]), int(entry["fs_base"][0])), int(entry["frame"][0])
        began, ended = int(entry["seq"][0]), int(row["seq"][0])
        explained: list[Judged] = []
        for owner, known in list(self._suspected.items()):
            its = [one for one in known if one.frame == frame and one.event < ended]
            its = [one for one in its if thread == (one.thread if one.event <= began else owner)]
            explained += [one.found for one in its]
            self._suspected[owner] = [one for one in known if one not in its]
            if not self._suspected[owner]:
                del self._suspected[owner]
        return explained

    def _running(self, before: Columns, cpu: int) -> list[Thread | None]:
        """The threads whose user code runs on other CPUs than `cpu` behind the contexts `before` of this batch."""
        runs = self._runs | _last_left(before)
        return [thread for other, thread in runs.items() if other != cpu]

    def _note_stack(self, cpu: int, frame: int) -> None:
        stacks = self._stacks.setdefault(cpu, set())
        if len(stacks) < CAPACITY:
            stacks.add(frame)

    def _unsettled(
        self, spaces: Array, bases: Array, frames: Array, cpus: Array, renewed: Collection[Thread]
    ) -> list[int]:
        """Positions that need a look; the rest, of settled threads that land where they always do, is counted."""
        key = mixed(spaces, bases, cpus.astype(np.uint64))
        groups = grouped(key)
        first, which = groups.first, groups.which
        strays = np.zeros(len(first), bool)
        strays[which[frames != frames[first][which]]] = True
        settled = np.zeros(len(first), bool)
        for group, at in enumerate(first):
            thread = (int(spaces[at]), int(bases[at]))
            own = self._own.get(thread)
            if own is None or own.frame != int(frames[at]) or own.count < STEADY or thread in self._suspected:
                continue
            if thread in renewed and self._owner.get(own.frame) == thread:
                continue
            if not strays[group]:
                settled[group] = True
                self._note_stack(int(cpus[at]), own.frame)
                own.count += int(groups.counts[group])
        positions: list[int] = np.flatnonzero(~settled[which]).tolist()
        return positions

    def _landlord(self, thread: Thread, own: _Own | None, frame: int) -> Thread | None:
        """The other thread whose stack this is, if both have a stack of their own; else None."""
        owner = self._owner.get(frame)
        if own is None or own.count < STEADY or owner is None or owner == thread:
            return None
        theirs = self._own.get(owner)
        if self._owner.get(own.frame) != thread or theirs is None or theirs.frame != frame or theirs.count < STEADY:
            return None
        return owner

    def _settle(self, thread: Thread, frame: int) -> None:
        if len(self._own) >= CAPACITY:
            self._own.clear()
            self._owner.clear()
        self._own[thread] = _Own(frame, 1)
        known = self._owner.setdefault(frame, thread)
        if known != thread:
            self._owner[frame] = None  # shared by several threads: nobody's


def look(cpus: int) -> str:
    """What to look at where user code was entered on a wrong stack, on one of so many CPUs."""
    return _LOOK if cpus < 2 else _LOOK_CPUS


def _last_left(rows: Columns) -> dict[int, Thread | None]:
    """By CPU the thread that the last of its contexts `rows` returned to, None if that was no return to user code."""
    left: dict[int, Thread | None] = {}
    for cpu, (_, its) in by_cpu(rows).items():
        last = its.take(np.array([len(its) - 1]))
        returned = bool(is_user(last)[0]) and last["kind"][0] == Kind.EXIT
        left[cpu] = (int(space(last)[0]), int(last["fs_base"][0])) if returned else None
    return left


def _landings(rows: Columns) -> Bools:
    chosen = (rows["kind"] == Kind.ENTRY) & is_user(rows) & (rows["frame"] != 0)
    landings: Bools = chosen & ((rows["flags"] & (Flag.IST | Flag.UNREADABLE)) == 0)
    return landings


def _wrong_stack(thread: Thread, owner: Thread, expected: int, frame: int, cpus: int) -> Draft:
    cause = (
        f"the thread with CR3 {thread[0]:#x} landed on the stack of the thread with CR3 {owner[0]:#x}: its frame is at "
        f"{frame:#x}, its own stack's at {expected:#x}"
    )
    return Draft("CW303", cause, look(cpus), (Difference("frame", expected, frame),))
