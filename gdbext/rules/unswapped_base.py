"""The kernel's GS base where nothing is swapped but written: CW205, where kernel code goes on with another CPU's.

A kernel without ``swapgs`` that saves GS with every context gives what it interrupted in itself the base of the CPU on
which that was, wherever it goes on. Judged only among CPUs that were seen with one base each, always: a base that
belongs to the thread is seen on many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from gdbext.arch.registers import MSR_GS_BASE
from gdbext.events.columns import Array, Columns, Rows, by_cpu
from gdbext.events.row import Batch, Flag, Kind
from gdbext.ledger.compare import Bools, is_user
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference

STEADY: Final = 16
"""Sightings after which a base is its CPU's own."""


@dataclass(slots=True)
class _Own:
    """The one base that a CPU was seen with in kernel code, and how often; the event since which it is its own, and
    that at which it was seen with another."""

    base: int
    count: int = 0
    since: int | None = None
    until: int | None = None

    def held(self, base: int, event: int) -> bool:
        """True if `base` was the CPU's own at `event`."""
        begun = self.since is not None and self.since < event
        return self.base == base and begun and (self.until is None or event < self.until)


class UnswappedBaseJudge:
    """Learns each CPU's base from its entries from kernel code, its exits to it, and what that code writes."""

    def __init__(self) -> None:
        self._own: dict[int, _Own] = {}
        self._swaps = False

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge a batch in order of ``seq``; it costs nothing once a ``swapgs`` was seen."""
        self._swaps = self._swaps or bool((batch["kind"] == Kind.SWAPGS).any())
        if self._swaps:
            return []
        kind, flags = batch["kind"], batch["flags"]
        chosen = ((kind == Kind.ENTRY) | (kind == Kind.EXIT)) & ~is_user(batch)
        chosen &= (flags & (Flag.NO_BASES | Flag.UNREADABLE | Flag.SELF)) == 0
        chosen |= (kind == Kind.BASE) & (batch["addr"] == MSR_GS_BASE) & _is_high(batch["pc"])
        rows = batch.take(np.flatnonzero(chosen & (batch["mode"] == 64) & _is_high(_bases(batch))))
        strays = [int(mine[at]) for cpu, (mine, its) in by_cpu(rows).items() for at in self._note(cpu, its)]
        return [judged for at in sorted(strays) for judged in self._judge(rows.row(at))]

    def _note(self, cpu: int, rows: Columns) -> list[int]:
        """Count what `cpu` was seen with in its `rows`; the place of the first base other than its own."""
        bases, seqs = _bases(rows), rows["seq"]
        own = self._own.setdefault(cpu, _Own(int(bases[0])))
        if own.until is not None:
            return []
        others = np.flatnonzero(bases != np.uint64(own.base))[:1].tolist()
        seen = others[0] if others else len(bases)
        if own.count < STEADY <= own.count + seen:
            own.since = int(seqs[STEADY - own.count - 1])
        own.count += seen
        own.until = int(seqs[seen]) if others else None
        return others if own.since is not None else []

    def _judge(self, row: Batch) -> list[Judged]:
        """The CPU is seen with another base than before; nothing more is said of it."""
        cpu, base, event = int(row["cpu"][0]), int(_bases(row)[0]), int(row["seq"][0])
        owners = [other for other, its in self._own.items() if other != cpu and its.held(base, event)]
        return [(_draft(cpu, owners[0], self._own[cpu].base, base), row, None)] if owners else []


def _bases(rows: Rows) -> Array:
    """The GS base that each of `rows` shows: the one it writes, or the active one."""
    bases: Array = np.where(rows["kind"] == Kind.BASE, rows["value"], rows["gs_base"])
    return bases


def _is_high(addresses: Array) -> Bools:
    high: Bools = addresses >> np.uint64(63) != 0
    return high


def _draft(cpu: int, owner: int, own: int, base: int) -> Draft:
    cause = (
        f"CPU {cpu} goes on in kernel code with GS base {base:#x}, which is CPU {owner}'s: with it that code finds the "
        "data of another CPU"
    )
    look = "what loads GS on the way back to kernel code: a base saved on one CPU is not for another, leave it as it is"
    return Draft("CW205", cause, look, (Difference("gs_base", own, base),))
