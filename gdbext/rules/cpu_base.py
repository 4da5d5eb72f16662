"""GS bases that belong to the CPU, not to what it runs: a kernel that never swaps may leave its own in user code.

Then a context that is resumed on another CPU finds that CPU's base. Known by this: the base was written before the CPU
first ran user code and never since, and no ``swapgs`` was seen.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.arch.registers import MSR_GS_BASE
from gdbext.events.columns import Columns
from gdbext.events.row import Kind
from gdbext.ledger.compare import crosses

_NEVER: Final = 1 << 64


class CpuBases:
    """Per CPU: the GS base it began with, and until which event it was its own."""

    def __init__(self) -> None:
        self._began: dict[int, int] = {}
        """The base last written before the CPU's first return to user code."""
        self._ran_user: set[int] = set()
        self._until: dict[int, int] = {}
        """The event by which the base was written again."""
        self._swapped = _NEVER

    def feed(self, batch: Columns) -> None:
        """Take a batch in order of ``seq``."""
        if self._swapped != _NEVER:
            return
        kind, seq = batch["kind"], batch["seq"]
        swaps = np.flatnonzero(kind == Kind.SWAPGS)
        if len(swaps):
            self._swapped = int(seq[swaps[0]])
        crossing = crosses(batch)
        cpus = batch["cpu"]
        first: dict[int, int] = {}
        for cpu in set(np.unique(cpus[crossing]).tolist()) - self._ran_user:
            first[cpu] = int(seq[np.flatnonzero(crossing & (cpus == cpu))[0]])
        for at in np.flatnonzero((kind == Kind.BASE) & (batch["addr"] == MSR_GS_BASE)).tolist():
            cpu, event = int(cpus[at]), int(seq[at])
            if cpu in self._ran_user or event > first.get(cpu, _NEVER):
                self._until.setdefault(cpu, event)
            else:
                self._began[cpu] = int(batch["value"][at])
        self._ran_user |= set(first)

    def owns(self, cpu: int, base: int, event: int) -> bool:
        """True if `base` was the CPU's own at `event`."""
        own = self._began.get(cpu) == base and event < self._until.get(cpu, _NEVER)
        return own and event < self._swapped
