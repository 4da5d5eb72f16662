"""How wide linear addresses are: 48 bits, or 57 with five-level paging (Intel SDM vol. 3A, 4.5; CR4.LA57).

No event holds CR4. A frame that the CPU pushed where no 48-bit address leads shows that there are 57.
"""

from __future__ import annotations

import numpy as np

from gdbext.events.columns import Columns
from gdbext.events.row import Kind
from gdbext.ledger.compare import Bools, contexts

NARROW, WIDE = 48, 57


class LinearWidth:
    """Learns the width from the frames pushed."""

    def __init__(self) -> None:
        self._wide_since: int | None = None

    def feed(self, batch: Columns) -> None:
        """Take a batch in order of ``seq``."""
        if self._wide_since is not None:
            return
        rows = contexts(batch)
        high = rows["frame"].view(np.int64) >> (NARROW - 1)
        beyond = (rows["kind"] == Kind.ENTRY) & (rows["mode"] == 64) & (high != 0) & (high != -1)
        shown = np.flatnonzero(beyond)
        if len(shown):
            self._wide_since = int(rows["seq"][shown[0]])

    def noncanonical(self, batch: Columns) -> Bools:
        """True where a 64-bit row's RIP is not canonical."""
        top = batch["rip"].view(np.int64)
        bad: Bools = (batch["mode"] == 64) & (top >> (NARROW - 1) != 0) & (top >> (NARROW - 1) != -1)
        if self._wide_since is not None and bad.any():
            top = top >> (WIDE - 1)
            bad &= (batch["seq"] < self._wide_since) | ((top != 0) & (top != -1))
        return bad

    def at(self, seq: int) -> int:
        """Bits of a linear address, as known at event `seq`."""
        return WIDE if self._wide_since is not None and seq >= self._wide_since else NARROW
