"""Pair, in one batch, every exit that resumes a context bit for bit with the entry that interrupted it.

A stable sort on the key (RIP, RSP, address space) brings an exit behind the entry it resumes. What does not pair
this way, or not identically, is left for the slow look at single events (:mod:`gdbext.rules.resume`), which takes the
same decisions one event at a time: the result does not depend on where batches are cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gdbext.events.columns import Columns
from gdbext.events.row import Flag, Kind
from gdbext.ledger.compare import Bools, Law, differences, keys

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Indices into one batch: identical pairs, in order of their entries, and the events left over, in order."""

    entries: Indices
    exits: Indices
    rest: Indices


def pair(batch: Columns, law: Law, hold_back: Bools) -> Pairs:
    """Pair the identical ones; rows where `hold_back` is True, and their partners, stay in the rest."""
    kind = batch["kind"]
    chosen = (kind == Kind.ENTRY) | (kind == Kind.EXIT)
    chosen &= (batch["flags"] & Flag.SELF) == 0
    index = np.flatnonzero(chosen)
    none = np.empty(0, np.intp)
    if len(index) < 16:
        return Pairs(none, none, index)
    key = keys(batch)[index]
    order = np.argsort(key, kind="stable")
    key, index = key[order], index[order]
    is_exit = kind[index] == Kind.EXIT
    behind = np.flatnonzero((key[1:] == key[:-1]) & is_exit[1:] & ~is_exit[:-1]) + 1
    entries, exits = index[behind - 1], index[behind]
    flags = batch["flags"]
    same = (~hold_back[exits]) & ((flags[entries] | flags[exits]) & Flag.UNREADABLE == 0)
    entries, exits = entries[same], exits[same]
    same = differences(batch.take(entries), batch.take(exits), law) == 0
    entries, exits = entries[same], exits[same]
    left = np.zeros(len(batch), bool)
    left[index] = True
    left[entries] = False
    left[exits] = False
    resumed_at = np.zeros(len(batch), np.intp)
    resumed_at[entries] = exits
    entries = np.flatnonzero(resumed_at)
    return Pairs(entries, resumed_at[entries], np.flatnonzero(left))
