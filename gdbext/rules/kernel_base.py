"""The kernel's GS base, waiting in KERNEL_GS_BASE while user code runs or active in the kernel: CW205.

Only of kernels that swap; to others the MSR means nothing. Two CPUs with one base kill the machine soon: if it dies
before both were seen to go on so, they are told by where it was seen last, counted or not. A base that cannot be the
kernel's may be the user's, left to wait there by a CPU's first return to user mode, which no count of swaps leads up
to: CW201.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gdbext.arch.addresses import CR3_TABLES, is_canonical, is_high_half
from gdbext.arch.registers import MSR_GS_BASE, MSR_KERNEL_GS_BASE
from gdbext.events.columns import SPREAD, Columns, Groups, by_cpu, grouped
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.ledger.compare import Bools, crosses, is_user, writes
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.gs import GsJudge
from gdbext.rules.history import History
from gdbext.rules.linear import LinearWidth
from gdbext.rules.shared_base import SharedBases

LAST: Final = (1 << 64) - 1
"""Later than any event."""
STEADY: Final = 4
"""Sightings, under two address spaces at least, after which a base counts as its CPU's own."""


Triples = npt.NDArray[Any]
"""CPU, base and address space, a column each."""


@dataclass(slots=True)
class _Sighting:
    """One base on one CPU: how often, and under which address spaces (two tell per-CPU data from a thread's)."""

    count: int = 0
    spaces: set[int] = field(default_factory=set)


class KernelBaseJudge:
    """Learns each CPU's kernel base, where the count of swaps says it stands, and judges the bad ones."""

    def __init__(self, gs: GsJudge, width: LinearWidth, history: History) -> None:
        self._gs = gs
        self._history = history
        self._width = width
        self._told: set[tuple[int, int]] = set()
        self._seen: dict[int, dict[int, _Sighting]] = {}
        self._shared = SharedBases()
        self._replaced: dict[int, int] = {}
        """By CPU that has run user code: the `lidt` since which it has not. Another kernel may run there (kexec)."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the events of the batch that the GS rules have just seen."""
        written = writes(batch, MSR_GS_BASE, MSR_KERNEL_GS_BASE)
        rows, triples = self._crossings()
        loads = batch.take(np.flatnonzero(batch["kind"] == Kind.IDT))
        if len(loads) or self._replaced:
            known = self._of_known_kernels(loads, rows)
            rows, triples = rows.take(np.flatnonzero(known)), triples[:, known]
        groups = _distinct(triples)
        unique = triples[:, groups.first].T
        judged: list[Judged] = []
        if self._is_shared(unique):
            judged += self._in_order(written, rows, triples)
        else:
            for at in np.argsort(groups.first).tolist():
                judged += self._see(unique[at], int(groups.counts[at]), rows, int(groups.first[at]))
            self._remember(written, rows, triples)
        died = np.flatnonzero(batch["kind"] == Kind.DIED)[:1]
        return judged + self._at_death(int(batch["seq"][died[0]])) if len(died) else judged

    def _crossings(self) -> tuple[Columns, Triples]:
        """The events at which a CPU's kernel base is known, in order."""
        rows, waits = self._gs.based, self._gs.waits
        missing = rows["flags"] & np.where(waits, np.uint16(Flag.NO_KERNEL_GS), np.uint16(Flag.NO_BASES))
        fit = self._gs.swaps_at(rows["seq"]) & (missing == 0) & (rows["mode"] == 64)
        if not fit.all():
            rows, waits = rows.take(np.flatnonzero(fit)), waits[fit]
        base = np.where(waits, rows["kernel_gs_base"], rows["gs_base"])
        return rows, np.stack((rows["cpu"].astype(np.uint64), base, _page_tables(rows)))

    def _of_known_kernels(self, loads: Columns, rows: Columns) -> Bools:
        """False for those of the crossings `rows` of the batch that are of a kernel of which nothing is known: its CPU
        ran user code, has loaded another interrupt table (one of `loads`, or before), and has not run user code since.
        """
        known = np.ones(len(rows), bool)
        for cpu in {*loads["cpu"].tolist(), *self._replaced}:
            mine = np.flatnonzero(rows["cpu"] == cpu)
            events, user = rows["seq"][mine], is_user(rows)[mine]
            carried = [self._replaced.pop(cpu)] if cpu in self._replaced else []
            tables = np.array([*carried, *loads["seq"][loads["cpu"] == cpu].tolist()], np.uint64)
            ran = any(sighting.spaces for sighting in self._seen.get(cpu, {}).values())
            since = _last_before(events, events[user], 0 if ran else LAST)
            known[mine] = user | (_last_before(events, tables, 0) <= since)
            if len(tables) and (ran or user.any()) and not (events[user] > tables[-1]).any():
                self._replaced[cpu] = int(tables[-1])
        return known

    def _is_shared(self, unique: Triples) -> bool:
        """True if two CPUs were seen with one base: then the order of single events matters."""
        pairs = {(int(cpu), int(base)) for cpu, base, _ in unique}
        pairs |= {(cpu, base) for cpu, seen in self._seen.items() for base in seen}
        return len({base for _, base in pairs}) < len(pairs)

    def _in_order(self, written: Columns, rows: Columns, triples: Triples) -> list[Judged]:
        """Judge event by event."""
        judged: list[Judged] = []
        events = [(int(seq), True, at) for at, seq in enumerate(written["seq"])]
        events += [(int(seq), False, at) for at, seq in enumerate(rows["seq"])]
        for _, write, at in sorted(events):
            if write:
                self._shared.wrote(written.row(at))
                continue
            cpu, base = int(triples[0, at]), int(triples[1, at])
            shared = self._shared.sighted(cpu, base)
            if shared is not None:
                judged += self._tell(*shared, base)
            judged += self._see(triples[:, at], 1, rows, at)
        return judged

    def _remember(self, written: Columns, rows: Columns, triples: Triples) -> None:
        """The last write of each base, and the last sight of one, on each CPU."""
        for msr in (MSR_GS_BASE, MSR_KERNEL_GS_BASE):
            its = written.take(np.flatnonzero(written["addr"] == msr))
            for at in _last_by_cpu(its).values():
                self._shared.wrote(its.row(at))
        ends = {cpu: int(written["seq"][at]) for cpu, at in _last_by_cpu(written).items()}
        for cpu, at in _last_by_cpu(rows).items():
            if int(rows["seq"][at]) > ends.get(cpu, 0):
                self._shared.sighted(cpu, int(triples[1, at]))

    def _at_death(self, event: int) -> list[Judged]:
        """Two CPUs that were last seen with one base before the machine died at `event`."""
        if not self._gs.swaps_at(np.array([event]))[0]:
            return []
        rows = self._history.before(event)
        kind, user = rows["kind"], is_user(rows)
        chosen = (kind == Kind.ENTRY) | ((kind == Kind.EXIT) & user)
        rows = rows[chosen & ((rows["flags"] & (Flag.NO_BASES | Flag.NO_KERNEL_GS)) == 0) & (rows["mode"] == 64)]
        bases = np.where(is_user(rows), rows["kernel_gs_base"], rows["gs_base"])
        judged: list[Judged] = []
        had: dict[int, int] = {}
        for cpu, base in dict(zip(rows["cpu"].tolist(), bases.tolist(), strict=True)).items():
            other = had.setdefault(base, cpu)
            writes = [(one, self._shared.brought(one, base)) for one in (other, cpu)]
            shown = [(int(write["seq"][0]), one, write) for one, write in writes if write is not None]
            if other != cpu and len(shown) == 2:
                (_, owner, _), (_, guilty, write) = sorted(shown, key=lambda item: item[0])
                judged += self._tell(guilty, owner, write, base)
        return judged

    def _see(self, triple: Triples, count: int, rows: Columns, at: int) -> list[Judged]:
        """Judge what is seen `count` times, first in the row at `at`."""
        cpu, base, cr3 = (int(value) for value in triple)
        sighting = self._seen.setdefault(cpu, {}).setdefault(base, _Sighting())
        new = sighting.count == 0
        sighting.count += count
        if cr3 and len(sighting.spaces) < 2:
            sighting.spaces.add(cr3)
        judged = self._judge_new(cpu, base, rows.row(at)) if new else []
        owner = self._owner(cpu, base)
        if owner is not None:
            brought = self._shared.brought(cpu, base)
            judged += self._tell(cpu, owner, rows.row(at) if brought is None else brought, base)
        return judged

    def _tell(self, cpu: int, owner: int, row: Batch, base: int) -> list[Judged]:
        if (cpu, base) in self._told:
            return []
        self._told.add((cpu, base))
        return [(_foreign(cpu, owner, base), row, None)]

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

    def _judge_new(self, cpu: int, base: int, row: Batch) -> list[Judged]:
        """Whether `base`, seen for the first time at the event `row`, can be the base of a kernel."""
        why = self._implausible(base, row)
        if not why:
            return []
        first = self._gs.first_exits.get(cpu)
        if first is not None and _exchanged(first, base):
            return [(_unswapped(first, base, why), first, None)]
        cause = f"the base that swapgs will make the kernel's is {base:#x}, {why}"
        look = "where KERNEL_GS_BASE (MSR C0000102h) is loaded for this CPU, and who cleared or leaked it"
        return [(Draft("CW205", cause, look, (Difference("kernel_gs_base", None, base),)), row, None)]

    def _implausible(self, base: int, row: Batch) -> str:
        """Why a kernel's base cannot be `base`; "" if it can."""
        if base == 0:
            return "zero"
        if not is_canonical(base, self._width.at(int(row["seq"][0]))):
            return "not canonical"
        if is_high_half(int(row["pc"][0])) and not is_high_half(base):
            return "in the user's half of the address space"
        return ""


def _exchanged(first: Batch, base: int) -> bool:
    """True if `base` waited in KERNEL_GS_BASE at the exit `first` while user code was given one that only a kernel in
    the high half has."""
    if first["flags"][0] & (Flag.NO_BASES | Flag.NO_KERNEL_GS) or int(first["kernel_gs_base"][0]) != base:
        return False
    return is_high_half(int(first["pc"][0])) and is_high_half(int(first["gs_base"][0])) and not is_high_half(base)


def _unswapped(first: Batch, base: int, why: str) -> Draft:
    active = int(first["gs_base"][0])
    cause = (
        f"{How.name(int(first['how'][0]))} returned to user code with the kernel's GS base {active:#x} active: this "
        f"CPU's first return to user mode did not swap, and the next swapgs made {base:#x}, {why}, the kernel's"
    )
    look = "the way on which a new context goes to user mode for the first time: it needs the exit's swapgs, too"
    return Draft("CW201", cause, look, (Difference("gs_base", base, active),))


def _page_tables(rows: Columns) -> npt.NDArray[np.uint64]:
    """The page tables that user code was interrupted under, 0 where it was not. (Page-table isolation gives a thread
    two; at its entries it is always the same one.)"""
    entered = (rows["kind"] == Kind.ENTRY) & crosses(rows)
    tables: npt.NDArray[np.uint64] = np.where(entered, rows["cr3"] & np.uint64(CR3_TABLES), np.uint64(0))
    return tables


def _last_before(events: npt.NDArray[np.uint64], of: npt.NDArray[np.uint64], none: int) -> npt.NDArray[np.uint64]:
    """For each of `events` the last event in `of` that is not later, `none` where there is none. Both are in order."""
    return np.concatenate((np.array([none], np.uint64), of))[np.searchsorted(of, events, side="right")]


def _last_by_cpu(rows: Columns) -> dict[int, int]:
    """The position of each CPU's last row; the CPU that comes first among the rows is first."""
    mine = sorted(((places, cpu) for cpu, (places, _) in by_cpu(rows).items()), key=lambda item: int(item[0][0]))
    return {cpu: int(places[-1]) for places, cpu in mine}


def _distinct(triples: Triples) -> Groups:
    """The groups of equal `triples`."""
    cpu, base, tables = triples
    return grouped(cpu ^ (base * np.uint64(SPREAD)) ^ (tables * np.uint64(0xC2B2AE3D27D4EB4F)))


def _foreign(cpu: int, owner: int, base: int) -> Draft:
    cause = f"CPU {cpu} runs with kernel GS base {base:#x}, which is CPU {owner}'s"
    look = (
        f"what loads KERNEL_GS_BASE when CPU {cpu} starts, and code that computes the per-CPU address from the wrong id"
    )
    return Draft("CW205", cause, look, (Difference("kernel_gs_base", None, base),))
