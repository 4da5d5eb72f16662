"""Which pushes into save areas belong to no save: the stack of the code that pushes reaches into the area.

A handler may push into one area, that of its own save: the one where the CPU put its frame; after a system call,
which pushes none, the one of the first push. A handler that was entered on another stack (an IST or trampoline stack)
copies the frame and moves its stack to below the copy: from then on it pushes into that area.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from gdbext.events.columns import Columns, Indices
from gdbext.events.row import Kind
from gdbext.ledger.compare import U64, Bools

NOWHERE: Final = 0
ANYWHERE: Final = 1
"""In place of an area's address."""


@dataclass(slots=True)
class _Save:
    """What the handler that runs on a CPU may push into.

    area: the save area, NOWHERE if none (or no handler runs).  rip: where it interrupted, if its frame lies in no
    area; else 0.  copied: the area that this RIP was copied to.  lowest: the lowest address stored to there so far.
    """

    area: int = NOWHERE
    rip: int = 0
    copied: int = NOWHERE
    lowest: int = 0

    def stored(self, area: int, address: int, value: int) -> None:
        """A store that is no push."""
        if area == self.copied:
            self.lowest = min(self.lowest, address)
        elif value == self.rip:
            self.copied, self.lowest = area, address

    def may_push(self, area: int, address: int) -> bool:
        """True if a push there is the save's: the first one comes below all that was copied."""
        if area == self.copied and address < self.lowest:
            self.area = area
        return area == self.area


class Pushes:
    """Knows the save that is in progress on every CPU."""

    def __init__(self) -> None:
        self._saves: dict[int, _Save] = {}

    def foreign(self, batch: Columns, turns: Indices, frames: U64, stores: Indices, owner: U64) -> Bools:
        """True for each of `stores` (rows that lie in the areas `owner`) that is a push and not the save's own.

        turns: the entries and exits among which they lie, at which it changes what is.  frames: the areas in which
        their frames lie, NOWHERE for others.
        """
        mask = np.where(batch["mode"][stores] == 64, np.uint64(2**64 - 1), np.uint64(2**32 - 1))
        pushed = batch["addr"][stores] == (batch["rsp"][stores] - batch["size"][stores]) & mask
        entered, called = batch["kind"][turns] == Kind.ENTRY, batch["frame"][turns] == 0
        areas = np.where(entered, np.where(called, np.uint64(ANYWHERE), frames), np.uint64(NOWHERE))
        away = entered & ~called & (frames == NOWHERE)
        rips = np.where(away, batch["rip"][turns], np.uint64(0))
        foreign = np.zeros(len(stores), bool)
        for cpu in np.unique(batch["cpu"][np.concatenate((turns, stores))]).tolist():
            mine, own = batch["cpu"][turns] == cpu, np.flatnonzero(batch["cpu"][stores] == cpu)
            since = np.searchsorted(turns[mine], stores[own])  # 0: before the first of the turns
            now = self._saves.get(cpu, _Save())
            saving = np.concatenate((np.array([now.area], np.uint64), areas[mine]))
            interrupted = np.concatenate((np.array([now.rip], np.uint64), rips[mine]))
            first, at = np.unique(since[pushed[own]], return_index=True)
            open_ = saving[first] == ANYWHERE
            saving[first[open_]] = owner[own[pushed[own]][at[open_]]]
            foreign[own] = pushed[own] & (saving[since] != owner[own])
            doubtful = np.unique(since[foreign[own] & (interrupted[since] != 0)]).tolist()
            last = len(saving) - 1
            for turn in dict.fromkeys((*doubtful, last)):
                save = replace(now) if turn == 0 else _Save(int(saving[turn]), int(interrupted[turn]))
                save.area = int(saving[turn])
                if save.rip:
                    self._follow(save, batch, stores, owner, foreign, own[since == turn])
                if turn == last:
                    self._saves[cpu] = save
        return foreign

    @staticmethod
    def _follow(save: _Save, batch: Columns, stores: Indices, owner: U64, foreign: Bools, chosen: Indices) -> None:
        """Go through the stores made during a save whose frame lies elsewhere, and clear those that are its own."""
        places = stores[chosen]
        columns = chosen, owner[chosen], batch["addr"][places], batch["value"][places], foreign[chosen]
        for at, area, address, value, push in zip(*(column.tolist() for column in columns), strict=True):
            if push:
                foreign[at] = not save.may_push(area, address)
            else:
                save.stored(area, address, value)
