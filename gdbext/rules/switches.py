"""Voluntary stack switches: what the switch function was entered with comes back when it returns (CW108)."""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.arch.registers import CALLEE_SAVED_32, CALLEE_SAVED_64
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Kind
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference

CAPACITY: Final = 4096
CODE_REACH: Final = 1 << 31
"""Bytes a near call reaches: a caller is no further from its function."""


class SwitchJudge:
    """Threads that switched away, by the stack pointer at the switch function's first instruction."""

    def __init__(self) -> None:
        self._away: dict[int, Batch] = {}

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the switches of a batch in order."""
        judged: list[Judged] = []
        kind = batch["kind"]
        for index in np.flatnonzero((kind == Kind.SWITCH_OUT) | (kind == Kind.SWITCH_IN)):
            row = batch.row(int(index))
            stack = int(row["rsp"][0])
            if not _at_function(row):
                continue
            if row["kind"][0] == Kind.SWITCH_OUT:
                self._away.pop(stack, None)
                self._away[stack] = row.copy()
                if len(self._away) > CAPACITY:
                    del self._away[next(iter(self._away))]
                continue
            left = self._away.pop(stack, None)
            # Another return address is another thread: one that begins on a stack that a dead one has left.
            if left is not None and left["stack"][0][0] == row["stack"][0][0]:
                judged += [(draft, row, left) for draft in _judge(left, row)]
        return judged


def _at_function(row: Batch) -> bool:
    """True if what lies at RSP can be a return address of this code (or was not captured): a function's border."""
    back, pc = int(row["stack"][0][0]), int(row["pc"][0])
    return back == 0 or abs(back - pc) < CODE_REACH


def _judge(left: Batch, back: Batch) -> list[Draft]:
    saved = CALLEE_SAVED_64 if back["mode"][0] == 64 else CALLEE_SAVED_32
    lost = tuple(Difference(n, int(left[n][0]), int(back[n][0])) for n in saved if left[n][0] != back[n][0])
    if not lost:
        return []
    listed = ", ".join(d.field for d in lost)
    cause = (
        f"the thread that switched away at event {int(left['seq'][0])} comes back with {listed} changed; "
        "the calling convention has its caller rely on it"
    )
    return [Draft("CW108", cause, "the pushes of the switch function beside its pops", lost, match="exact")]
