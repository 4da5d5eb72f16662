"""The kernel's GS base, waiting in KERNEL_GS_BASE while user code runs or active in the kernel: CW205.

Only of kernels that swap; to others the MSR means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from gdbext.arch.addresses import is_canonical, is_high_half
from gdbext.events.row import Batch, Flag
from gdbext.ledger.compare import space
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.gs import GsJudge

STEADY: Final = 4
"""Sightings, under two address spaces at least, after which a base counts as its CPU's own."""


@dataclass(slots=True)
class _Sighting:
    """One base on one CPU: how often, and under which address spaces (two tell per-CPU data from a thread's)."""

    count: int = 0
    spaces: set[int] = field(default_factory=set)


class KernelBaseJudge:
    """Learns each CPU's kernel base, where the count of swaps says it stands, and judges the bad ones."""

    def __init__(self, gs: GsJudge) -> None:
        self._gs = gs
        self._told: set[tuple[int, int]] = set()
        self._seen: dict[int, dict[int, _Sighting]] = {}

    def feed(self, batch: Batch) -> list[Judged]:
        """Judge the events of the batch that the GS rules have just seen."""
        since = self._gs.swaps_since
        if since is None:
            return []
        parts = []
        for rows, column in self._gs.kernel_bases:
            missing = Flag.NO_KERNEL_GS if column == "kernel_gs_base" else Flag.NO_BASES
            rows = rows[(rows["seq"] > since) & ((rows["flags"] & missing) == 0) & (rows["mode"] == 64)]
            parts.append((rows, np.stack((rows["cpu"].astype(np.uint64), rows[column], space(rows)), axis=1)))
        rows = np.concatenate([rows for rows, _ in parts])
        triples = np.concatenate([triples for _, triples in parts])
        if not len(rows):
            return []
        order = np.argsort(rows["seq"], kind="stable")
        rows, triples = rows[order], triples[order]
        unique, first, counts = np.unique(triples, axis=0, return_index=True, return_counts=True)
        judged: list[Judged] = []
        if self._shared(unique):
            for at in range(len(rows)):
                judged += self._see(triples[at], 1, rows[at : at + 1])
        else:
            for at in np.argsort(first):
                judged += self._see(unique[at], int(counts[at]), rows[first[at] : first[at] + 1])
        return judged

    def _shared(self, unique: npt.NDArray[np.uint64]) -> bool:
        """True if two CPUs were seen with one base: then the order of single events matters."""
        pairs = {(int(cpu), int(base)) for cpu, base, _ in unique}
        pairs |= {(cpu, base) for cpu, seen in self._seen.items() for base in seen}
        return len({base for _, base in pairs}) < len(pairs)

    def _see(self, triple: npt.NDArray[np.uint64], count: int, row: Batch) -> list[Judged]:
        cpu, base, cr3 = (int(value) for value in triple)
        sighting = self._seen.setdefault(cpu, {}).setdefault(base, _Sighting())
        new = sighting.count == 0
        sighting.count += count
        if cr3 and len(sighting.spaces) < 2:
            sighting.spaces.add(cr3)
        judged: list[Judged] = [(draft, row, None) for draft in _implausible(base, row)] if new else []
        owner = self._owner(cpu, base)
        if owner is not None and (cpu, base) not in self._told:
            self._told.add((cpu, base))
            judged.append((_foreign(cpu, owner, base), row, None))
        return judged

    def _owner(self, cpu: int, base: int) -> int | None:
        """The other CPU whose own, and only, kernel base this is."""
        own = self._seen[cpu]
        for other, seen in self._seen.items():
            known = seen.get(base)
            if other == cpu or known is None or len(seen) > 1 or len(known.spaces) < 2 or known.count < STEADY:
                continue
            theirs = len(own) == 1 and own[base].count >= known.count
            if not theirs:
                return other
        return None


def _implausible(base: int, row: Batch) -> list[Draft]:
    if base == 0:
        why = "zero"
    elif not is_canonical(base):
        why = "not canonical"
    elif is_high_half(int(row["pc"][0])) and not is_high_half(base):
        why = "in the user's half of the address space"
    else:
        return []
    cause = f"the base that swapgs will make the kernel's is {base:#x}, {why}"
    look = "where KERNEL_GS_BASE (MSR C0000102h) is loaded for this CPU, and who cleared or leaked it"
    return [Draft("CW205", cause, look, (Difference("kernel_gs_base", 0, base),))]


def _foreign(cpu: int, owner: int, base: int) -> Draft:
    cause = f"CPU {cpu} runs with kernel GS base {base:#x}, which is CPU {owner}'s"
    look = (
        f"what loads KERNEL_GS_BASE when CPU {cpu} starts, and code that computes the per-CPU address from the wrong id"
    )
    return Draft("CW205", cause, look, (Difference("kernel_gs_base", 0, base),))
