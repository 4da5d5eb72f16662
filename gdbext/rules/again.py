"""A system call that returns for the third time: CW404.

One call may return twice, to the caller and to the child that it made. What comes back a third time, right from an
interrupt of the same thread on the same CPU, is an old save: the one made at that interrupt lies elsewhere, and is
lost. No tracer may have a hand in it, for one that stops a thread puts back what it found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from gdbext.arch import vectors
from gdbext.events.columns import Columns, Indices, Rows, by_cpu
from gdbext.events.row import Batch, Flag, Kind
from gdbext.ledger.compare import Bools, agreement, contexts, is_call, is_user, keys, space
from gdbext.rules.draft import Judged
from gdbext.rules.history import History
from gdbext.rules.stale import lost_save

CAPACITY: Final = 1024
"""Places remembered to which a thread was sent from its interrupt; beyond it the oldest is forgotten."""
TWICE: Final = 2
KEPT: Final = 12
"""General registers besides RSP that a call does not change: all but RAX, RCX and R11."""


@dataclass(slots=True)
class _Place:
    """Where a thread was sent. call: the system call that returned there before, if one did; times: how often since."""

    call: Batch | None
    times: int = 0


class CallAgainJudge:
    """Counts the exits to each place where no context waited, of threads that were interrupted elsewhere."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._places: dict[int, _Place] = {}

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the exits to user code of a batch in order of ``seq``."""
        rows = contexts(batch)
        left = (rows["kind"] == Kind.EXIT) & ((rows["flags"] & (Flag.IDENTICAL | Flag.SELF | Flag.UNREADABLE)) == 0)
        positions = np.flatnonzero(left & is_user(rows))
        positions = positions[rows.at("match", positions) == 0]
        if not len(positions):
            return []
        judged: list[Judged] = []
        cpus = by_cpu(rows.take(positions)).items()
        sent = [self._sent(cpu, rows, positions[mine]) for cpu, (mine, _) in cpus]
        for at in np.sort(np.concatenate(sent)).tolist():
            row = rows.row(at)
            last = self._history.last_crossing(int(row["cpu"][0]), int(row["seq"][0]))
            if len(last) and _interrupted(last, row)[0]:
                judged += self._judge(row, int(keys(row)[0]), last)
        return judged

    def _sent(self, cpu: int, rows: Columns, positions: Indices) -> Indices:
        """Those of the exits of `cpu` at `positions` of the contexts `rows` that may come right from an interrupt of
        their thread."""
        last = self._history.crossings_before(cpu, positions)
        known = np.maximum(last, 0)  # a place in any case: it is read before the answer is known not to matter
        return positions[(last < 0) | _interrupted(rows.take(known), rows.take(positions))]

    def _judge(self, row: Batch, key: int, last: Batch) -> list[Judged]:
        """Judge an exit that comes right from `last`, where its thread was interrupted."""
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = _Place(self._call_before(row, key))
            if len(self._places) > CAPACITY:
                del self._places[next(iter(self._places))]
        if place.call is None or agreement(place.call, row)[0][0] < KEPT:
            return []
        place.times += 1
        if place.times != TWICE:
            return []
        newer = self._call_before(row, key)
        if newer is not None and newer["seq"][0] != place.call["seq"][0]:
            self._places[key] = _Place(newer, 1)
            return []
        return [(lost_save(place.call, last, row), row.copy(), last.copy())]

    def _call_before(self, row: Batch, key: int) -> Batch | None:
        """The system call that is the last context with this key to be interrupted before the exit `row`."""
        past = self._history.before(int(row["seq"][0]))
        past = past[(past["kind"] == Kind.ENTRY) & (keys(past) == key)][-1:]
        return past.copy() if len(past) and is_call(past)[0] else None


def _interrupted(last: Rows, row: Rows) -> Bools:
    """True where `last` is an interrupt of the thread that the exit `row` resumes."""
    mine: Bools = (last["kind"] == Kind.ENTRY) & (last["fs_base"] == row["fs_base"]) & ~is_call(last)
    for vector in vectors.TRACER_MAY_EDIT:
        mine &= last["vector"] != vector
    mine &= space(last) == space(row)
    return mine
