"""Hardware task switches that code asked for: the task taken up again is the one that gave way (CW108, CW107).

The CPU keeps all of a task's registers in its TSS (Intel SDM vol. 3A, chapter 8), so that nothing of it may change but
on purpose. A TSS that another task is put into goes on elsewhere, or with other registers altogether.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.arch import flags as rf
from gdbext.arch.registers import GPR64
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Flag, How, Kind, single
from gdbext.ledger.compare import page_tables
from gdbext.ledger.pending import UNLIKE
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference

CAPACITY: Final = 4096
"""Tasks remembered; beyond it the oldest is forgotten."""
_GENERAL: Final = GPR64[:8]
_SELECTORS: Final = ("cs", "ss", "ds", "es", "fs", "gs")


class TaskJudge:
    """Tasks that gave way by a far jump or call, by the address of their TSS."""

    def __init__(self) -> None:
        self._away: dict[int, Batch] = {}

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the switches of a batch in order of ``seq``."""
        kind = batch["kind"]
        switches = np.flatnonzero((kind == Kind.SWITCH_OUT) | (kind == Kind.SWITCH_IN))
        judged: list[Judged] = []
        for at in switches[batch.at("how", switches) == How.TASK].tolist():
            row = batch.row(at)
            left = self._away.pop(int(row["addr"][0]), None)
            if row["kind"][0] == Kind.SWITCH_OUT:
                self._away[int(row["addr"][0])] = single(row, 0)
            elif left is not None:
                judged += [(draft, row, left) for draft in _judge(left, row)]
        for task in list(self._away)[: max(len(self._away) - CAPACITY, 0)]:
            del self._away[task]
        return judged


def _judge(left: Batch, back: Batch) -> list[Draft]:
    """Judge the task of `back` (a batch of one), which gave way as `left`."""
    if left["rip"][0] != back["rip"][0] or left["rsp"][0] != back["rsp"][0]:
        return []
    lost = [name for name in _GENERAL if left[name][0] != back[name][0]]
    if len(lost) > UNLIKE:
        return []
    ignored = rf.RF | rf.NT | (rf.STATUS | rf.DF if left["flags"][0] & Flag.FLAGS_PARTIAL else 0)
    if (int(left["rflags"][0]) ^ int(back["rflags"][0])) & ~ignored:
        lost.append("rflags")
    lost += [name for name in _SELECTORS if left[name][0] != back[name][0]]
    if not lost and (page_tables(left) != page_tables(back))[0]:
        cause = (
            f"the task that gave way at event {int(left['seq'][0])} under CR3 {int(left['cr3'][0]):#x} is taken up "
            f"again under {int(back['cr3'][0]):#x}, which the TSS at {int(back['addr'][0]):#x} says"
        )
        wrong = (Difference("cr3", int(left["cr3"][0]), int(back["cr3"][0])),)
        return [Draft("CW107", cause, "who writes CR3 into the TSS: a switch does not save it", wrong, match="exact")]
    if not lost:
        return []
    found = tuple(Difference(name, int(left[name][0]), int(back[name][0])) for name in lost)
    cause = (
        f"the task that gave way at event {int(left['seq'][0])} is taken up again with {', '.join(lost)} changed: "
        f"the CPU had kept all of it in the TSS at {int(back['addr'][0]):#x}"
    )
    return [Draft("CW108", cause, "who writes into the TSS of a task that does not run", found, match="exact")]
