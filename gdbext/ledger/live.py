"""The contexts that wait when an exit comes: the pending ones, and those that its batch resumes later."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from gdbext.events.columns import GPRS, Columns, Indices
from gdbext.events.row import Batch, concat, pick
from gdbext.ledger.compare import gprs, is_call
from gdbext.ledger.leftover import Left, Spanning
from gdbext.ledger.pending import REACH_BYTES, Pending, are_alike


class Live:
    """What was interrupted before the exit `left` and is not yet resumed.

    batch: the exit's own.  spanning: those of its pairs that may lie around an exit.  All results are oldest first.
    """

    def __init__(self, left: Left, pending: Pending, batch: Columns, spanning: Spanning) -> None:
        self._left = left
        self._pending = pending
        self._batch = batch
        self._spans = spanning

    @cached_property
    def _indices(self) -> Indices:
        return self._spans.around(self._left.position)

    @cached_property
    def _spanning(self) -> Batch:
        return self._batch.pick(self._indices)

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
        return _merged(
            self._pending.thread(self._left.traits),
            self._batch.pick(self._spans.of_thread(self._left.position, int(self._left.traits.thread[0]))),
        )

    @cached_property
    def newest(self) -> Batch:
        """The last of these (a batch of one, or empty)."""
        pending, spanning = self._pending.newest(self._left.traits), self._left.newest
        if not len(spanning):
            return pending
        return pending if len(pending) and pending["seq"][0] > spanning["seq"][0] else spanning

    @cached_property
    def near(self) -> Batch:
        """Those of the exit's CPU and mode whose frame is within REACH_BYTES of the one it pops, but not that one."""
        pending = self._pending.near(self._left.traits)
        if not self._left.beside:
            return pending
        found, row = self._indices, self._left.row
        distance = self._batch["frame"][found] - row["frame"]
        found = found[(distance + np.uint64(REACH_BYTES) < 2 * REACH_BYTES) & (distance != 0)]
        rows = self._batch.pick(found)
        return _merged(pending, pick(rows, (rows["cpu"] == row["cpu"]) & (rows["mode"] == row["mode"])))

    @cached_property
    def alike(self) -> Batch:
        """Those that differ from what the exit resumes in two general registers besides RSP at most."""
        mine = gprs(self._left.row)[0]
        found = self._indices
        if len(found):
            found = found[are_alike(self._batch.at(GPRS, found), mine)]
        return _merged(self._pending.alike(mine, self._left.traits), self._batch.pick(found))

    @cached_property
    def calls(self) -> Batch:
        """The system calls among them that return to where the exit goes."""
        rows, rip = self._spanning, self._left.rip
        return _merged(self._pending.calls_at(rip), rows[is_call(rows) & (rows["rip"] == rip)])

    @cached_property
    def on_rsp(self) -> Batch:
        """Those with the RSP that the exit loads."""
        rows, rsp = self._spanning, int(self._left.row["rsp"][0])
        return _merged(self._pending.on_rsp(rsp), rows[rows["rsp"] == rsp])

    @cached_property
    def owners(self) -> Batch:
        """Those whose registers, or whose RSP, the exit may have loaded: alike, or with its RSP."""
        both = concat((self.alike, self.on_rsp))
        return pick(both, np.unique(both["seq"], return_index=True)[1])


def _merged(pending: Batch, spanning: Batch) -> Batch:
    if not len(spanning):
        return pending
    both = concat((pending, spanning)) if len(pending) else spanning
    return pick(both, np.argsort(both["seq"], kind="stable"))
