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
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Flag, Kind
from gdbext.ledger.compare import agreement, is_call, is_user, keys, space
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
        flags = batch["flags"]
        alone = (batch["kind"] == Kind.EXIT) & (batch["match"] == 0) & is_user(batch)
        positions = np.flatnonzero(alone & ((flags & (Flag.IDENTICAL | Flag.SELF | Flag.UNREADABLE)) == 0))
        if not len(positions):
            return []
        judged: list[Judged] = []
        rows = batch.take(positions)
        columns = keys(rows), rows["cpu"], rows["seq"]
        for at, key, cpu, event in zip(positions.tolist(), *(column.tolist() for column in columns), strict=True):
            last = self._history.last_crossing(cpu, event)
            if len(last) and last["kind"][0] == Kind.ENTRY:
                judged += self._judge(batch.row(at), key, last)
        return judged

    def _judge(self, row: Batch, key: int, last: Batch) -> list[Judged]:
        """Judge an exit that comes right behind the entry `last`."""
        if not _interrupted(last, row):
            return []
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


def _interrupted(last: Batch, row: Batch) -> bool:
    """True if the entry `last` is an interrupt of the thread that the exit `row` resumes."""
    mine = (space(last) == space(row)) & (last["fs_base"] == row["fs_base"])
    return bool(mine[0]) and not is_call(last)[0] and last["vector"][0] not in vectors.TRACER_MAY_EDIT
