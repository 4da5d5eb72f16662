"""What the kernel's functions promise their callers, by the guest's code: asked only once something rests on it."""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.code.convention import keeps_none
from gdbext.code.disasm import Code
from gdbext.code.paths import explore
from gdbext.events.row import Batch, Kind
from gdbext.rules.guest import GuestView
from gdbext.rules.history import History
from gdbext.rules.pathfacts import LIMITS

_TRIES: Final = 8
"""How often code is explored anew because other handlers were seen meanwhile."""


class Convention:
    """Tells a kernel whose calls keep registers from one whose calls keep none."""

    def __init__(self, guest: GuestView, history: History) -> None:
        self._guest = guest
        self._history = history
        self._from: dict[int, set[int]] = {}
        """By the code's bits from where it was explored."""
        self._tries: dict[int, int] = {}
        self._none: dict[int, bool] = {}

    def keeps_none(self, row: Batch, *places: int) -> bool:
        """True if a call keeps no register at the time of `row` (a batch of one), in code that the handlers seen until
        then reach, and that at `places` (guest virtual)."""
        bits = 64 if row["mode"][0] == 64 else 32
        known = self._from.setdefault(bits, set())
        if self._none.get(bits) or self._tries.get(bits, 0) >= _TRIES:
            return self._none.get(bits, False)
        past = self._history.before(int(row["seq"][0]))
        entries = past["pc"][(past["kind"] == Kind.ENTRY) & ((past["mode"] == 64) == (bits == 64))]
        new = {*places, *np.unique(entries).tolist()} - known - {0}
        if new:
            known |= new
            self._tries[bits] = self._tries.get(bits, 0) + 1
            code = Code(self._guest.read, bits)
            self._none[bits] = keeps_none(code, explore(code, sorted(known), LIMITS))
        return self._none.get(bits, False)
