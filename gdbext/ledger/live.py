"""The contexts that wait when an exit comes: the pending ones, and those that its batch resumes later."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from gdbext.events.row import Batch, concat, pick
from gdbext.ledger.compare import is_user, space
from gdbext.ledger.pending import REACH_BYTES, Pending, Traits, only_alike


class Live:
    """What was interrupted before the exit `row` (a batch of one) and is not yet resumed.

    spanning: gives the entries of the exit's own batch that are paired with later exits.  All results are oldest first.
    """

    def __init__(self, row: Batch, traits: Traits, pending: Pending, spanning: Callable[[], Batch]) -> None:
        self._row = row
        self._traits = traits
        self._pending = pending
        self._find = spanning

    @cached_property
    def _spanning(self) -> Batch:
        return self._find()

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
        rows = self._spanning
        if len(rows):
            distance = rows["frame"] - self._row["frame"]
            same = (rows["cpu"] == self._row["cpu"]) & (rows["mode"] == self._row["mode"])
            rows = pick(rows, same & (distance != 0) & (distance + np.uint64(REACH_BYTES) < 2 * REACH_BYTES))
        return _merged(self._pending.near(self._traits), rows)

    @cached_property
    def alike(self) -> Batch:
        """Those that differ from what the exit resumes in two general registers besides RSP at most."""
        return _merged(self._pending.alike(self._row, self._traits), only_alike(self._spanning, self._row))


def _merged(pending: Batch, spanning: Batch) -> Batch:
    if not len(spanning):
        return pending
    both = concat((pending, spanning)) if len(pending) else spanning
    return pick(both, np.argsort(both["seq"], kind="stable"))
