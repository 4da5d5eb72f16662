"""Handlers that user code comes to and returns from without a swapgs, time and again.

Where such a handler swaps after all, it has no base of its own to swap to: a hypervisor whose guests' kernels run in
user mode, too, moves between a guest's two bases so.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.events.columns import Array, any_of
from gdbext.ledger.compare import Bools

OFTEN: Final = 64
"""Rounds after which a handler is one."""


class PlainHandlers:
    """Counts the rounds without a swap of each handler, by its first instruction."""

    def __init__(self) -> None:
        self._rounds: dict[int, int] = {}
        self._since: dict[int, int] = {}
        """By handler, the event number of its last round that was counted."""

    def note(self, handlers: Array, seqs: Array) -> None:
        """Rounds of `handlers`, in order, that ended at the events `seqs`."""
        for handler in set(handlers[~any_of(handlers, self._since)].tolist()):
            its = seqs[handlers == handler]
            missing = OFTEN - self._rounds.get(handler, 0)
            if len(its) >= missing:
                self._since[handler] = int(its[missing - 1])
            else:
                self._rounds[handler] = OFTEN - missing + len(its)

    def swap(self, handlers: Array, seqs: Array) -> Bools:
        """Which of the swaps at `seqs` are such a handler's; each is the first event behind an entry by `handlers`."""
        found = any_of(handlers, self._since)
        for at in np.flatnonzero(found).tolist():
            found[at] = self._since[int(handlers[at])] < int(seqs[at])
        return found
