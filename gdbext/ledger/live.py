"""The contexts that wait when an exit comes: the pending ones, and those that its batch resumes later."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from gdbext.events.columns import Columns
from gdbext.events.row import Batch, concat, pick
from gdbext.ledger.compare import gprs, is_user, space
from gdbext.ledger.pairing import Indices
from gdbext.ledger.pending import REACH_BYTES, Pending, Traits, are_alike


class Live:
    """What was interrupted before the exit `row` (a batch of one) and is not yet resumed.

    batch: the exit's own.  spanning: gives the indices of its entries that are paired with later exits.  All results
    are oldest first.
    """

    def __init__(
        self, row: Batch, traits: Traits, pending: Pending, batch: Columns, spanning: Callable[[], Indices]
    ) -> None:
        self._row = row
        self._traits = traits
        self._pending = pending
        self._batch = batch
        self._find = spanning

    @cached_property
    def _indices(self) -> Indices:
        return self._find()

    @cached_property
    def _spanning(self) -> Batch:
        return pick(self._batch.rows, self._indices)

    def resumed_later(self) -> Batch:
        """Those that the exit's own batch resumes later."""
        return self._spanning

    @cached_property
    def all(self) -> Batch:
        """All of them."""
        return _merged(self._pending.all(), self._spanning)

    @cached_property
    def thread(self) -> Batch:
        """Those of the same address space, FS base and half (user or kernel code)."""
        rows, row = self._spanning, self._row
        if len(rows):
            same = (space(rows) == space(row)) & (rows["fs_base"] == row["fs_base"])
            rows = pick(rows, same & (is_user(rows) == is_user(row)))
        return _merged(self._pending.thread(self._traits), rows)

    @cached_property
    def near(self) -> Batch:
        """Those of the exit's CPU and mode whose frame is within REACH_BYTES of the one it pops, but not that one."""
        found = self._indices
        if len(found):
            distance = self._batch["frame"][found] - self._row["frame"]
            found = found[(distance + np.uint64(REACH_BYTES) < 2 * REACH_BYTES) & (distance != 0)]
        rows = pick(self._batch.rows, found)
        if len(rows):
            rows = pick(rows, (rows["cpu"] == self._row["cpu"]) & (rows["mode"] == self._row["mode"]))
        return _merged(self._pending.near(self._traits), rows)

    @cached_property
    def alike(self) -> Batch:
        """Those that differ from what the exit resumes in two general registers besides RSP at most."""
        mine = gprs(self._row)[0]
        found = self._indices
        if len(found):
            found = found[are_alike(self._batch.gprs()[found], mine)]
        return _merged(self._pending.alike(mine, self._traits), pick(self._batch.rows, found))


def _merged(pending: Batch, spanning: Batch) -> Batch:
    if not len(spanning):
        return pending
    both = concat((pending, spanning)) if len(pending) else spanning
    return pick(both, np.argsort(both["seq"], kind="stable"))
