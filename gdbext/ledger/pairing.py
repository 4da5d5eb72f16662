"""Pair, in one batch, every exit that resumes a context bit for bit with the entry that interrupted it.

Sorting by the key (RIP, RSP, address space) brings an exit behind the entry it resumes. What does not pair
this way, or not identically, is left for the slow look at single events (:mod:`gdbext.rules.resume`), which takes the
same decisions one event at a time: the result does not depend on where batches are cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gdbext.events.columns import Columns, Indices, together
from gdbext.events.row import Flag, Kind
from gdbext.ledger.compare import U64, Bools, Law, differences, keys


@dataclass(frozen=True, slots=True)
class Pairs:
    """Indices into one batch: identical pairs, in order of their entries, and the events left over, in order.

    lost: of pairs among these that are not identical, by the event numbers of entry and exit, the mask of differences.
    """

    entries: Indices
    exits: Indices
    rest: Indices
    lost: dict[tuple[int, int], int] = field(default_factory=dict)

    def joined(self, entries: Indices, exits: Indices) -> Pairs:
        """These pairs and some more, made of what was left over."""
        at = np.concatenate((self.entries, entries))
        order = np.argsort(at)
        rest = self.rest[~np.isin(self.rest, np.concatenate((entries, exits)))]
        return Pairs(at[order], np.concatenate((self.exits, exits))[order], rest, self.lost)


def pair(batch: Columns, law: Law, hold_back: Bools) -> Pairs:
    """Pair the identical ones; rows where `hold_back` is True, and their partners, stay in the rest."""
    kind = batch["kind"]
    chosen = (kind == Kind.ENTRY) | (kind == Kind.EXIT)
    chosen &= (batch["flags"] & Flag.SELF) == 0
    index = np.flatnonzero(chosen)
    none = np.empty(0, np.intp)
    if len(index) < 16:
        return Pairs(none, none, index)
    before, behind = adjacent(keys(batch.take(index)), kind[index] == Kind.EXIT)
    entries, exits = index[before], index[behind]
    flags = batch["flags"]
    same = (~hold_back[exits]) & ((flags[entries] | flags[exits]) & Flag.UNREADABLE == 0)
    entries, exits = entries[same], exits[same]
    masks = differences(batch.take(entries), batch.take(exits), law)
    wrong, same = np.flatnonzero(masks), masks == 0
    seq = batch["seq"]
    events = zip(seq[entries[wrong]].tolist(), seq[exits[wrong]].tolist(), strict=True)
    lost = dict(zip(events, masks[wrong].tolist(), strict=True))
    entries, exits = entries[same], exits[same]
    left = np.zeros(len(batch), bool)
    left[index] = True
    left[entries] = False
    left[exits] = False
    resumed_at = np.zeros(len(batch), np.intp)
    resumed_at[entries] = exits
    entries = np.flatnonzero(resumed_at)
    return Pairs(entries, resumed_at[entries], np.flatnonzero(left), lost)


def adjacent(key: U64, is_exit: Bools) -> tuple[Indices, Indices]:
    """The positions of entries and of the exits that come next among the events with the same `key`."""
    order = together(key)
    key, is_exit = key.take(order), is_exit.take(order)
    behind = np.flatnonzero((key[1:] == key[:-1]) & is_exit[1:] & ~is_exit[:-1]) + 1
    return order[behind - 1], order[behind]
