"""What a run shows of a guest of which nothing was known: interrupt table, system call entries, per-CPU bases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np

from gdbext.arch.registers import MSR_CSTAR, MSR_LSTAR, MSR_SYSENTER_EIP, display_name
from gdbext.events.row import Batch, Flag, Kind
from gdbext.ledger.compare import is_user
from gdbext.profiles.learn import Learnt

_CALLS: Final = {MSR_LSTAR: "syscall", MSR_CSTAR: "syscall of 32-bit code", MSR_SYSENTER_EIP: "sysenter"}
_GATE: Final = {64: 16, 32: 8}
"""Bytes of a gate (Intel SDM vol. 3A, 6.11 and 6.14.1)."""
_SAMPLE: Final = 64
"""Entries of a batch and CPU that are looked at: a base does not change."""


class Discoveries:
    """Collects what the events show."""

    def __init__(self) -> None:
        self._tables: dict[tuple[int, int], int] = {}
        self._calls: dict[int, int] = {}
        self._bases: dict[int, Counter[int]] = {}
        self._bits = 64

    def feed(self, batch: Batch) -> None:
        """Take a batch."""
        kind = batch["kind"]
        for index in np.flatnonzero(kind == Kind.IDT):
            self._tables[int(batch["addr"][index]), int(batch["value"][index])] = int(batch["seq"][index])
        for index in np.flatnonzero((kind == Kind.BASE) & np.isin(batch["addr"], list(_CALLS))):
            if batch["value"][index]:
                self._calls[int(batch["addr"][index])] = int(batch["value"][index])
        entries = np.flatnonzero((kind == Kind.ENTRY) & (batch["mode"] != 16))
        if len(entries):
            self._bits = 64 if batch["mode"][entries[-1]] == 64 else 32
        user = entries[is_user(batch)[entries] & ((batch["flags"][entries] & Flag.NO_KERNEL_GS) == 0)]
        for index in user[-_SAMPLE:]:
            if batch["kernel_gs_base"][index] and not batch["flags"][index] & Flag.PARITY_KERNEL:
                seen = self._bases.setdefault(int(batch["cpu"][index]), Counter())
                seen[int(batch["kernel_gs_base"][index])] += 1

    def lines(self, learnt: Learnt | None) -> Iterator[str]:
        """One line for each thing found; `learnt`: what the code of its entry paths says."""
        if self._tables:
            base, limit = max(self._tables, key=self._tables.__getitem__)
            yield f"interrupt table at {base:#x}, {(limit + 1) // _GATE[self._bits]} gates"
        if self._calls:
            yield "system calls enter at " + ", ".join(
                f"{at:#x} ({_CALLS[msr]})" for msr, at in sorted(self._calls.items(), key=lambda item: -item[0])
            )
        if self._bases:
            own = ((cpu, seen.most_common(1)[0][0]) for cpu, seen in sorted(self._bases.items()))
            yield "the kernel's GS base: " + ", ".join(f"CPU {cpu} {base:#x}" for cpu, base in own)
        if learnt is not None and learnt.found:
            yield _layout(learnt)


def _layout(learnt: Learnt) -> str:
    ascending = sorted(learnt.slots.items(), key=lambda item: item[1])
    slots = ", ".join(f"{display_name(name, learnt.bits)} +{at:#x}" for name, at in ascending)
    where = learnt.current or "a pointer that only the handler knows"
    return f"contexts are kept at {where}{' (the stack of the handler)' if learnt.on_stack else ''}: {slots}"
