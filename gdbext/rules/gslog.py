"""What happened to the two GS bases, event by event: for a person who looks, not for the rules.

Kept per CPU: both bases as last seen, who loaded each (the event that wrote the MSR or the base), the last ``swapgs``;
and over all CPUs the latest transitions: swaps, loads, and crossings of CPL 3, each with the parity by count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from gdbext.arch import vectors
from gdbext.arch.registers import MSR_GS_BASE, MSR_KERNEL_GS_BASE
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.ledger.compare import Bools, is_user
from gdbext.rules.parity import KERNEL, UNKNOWN, USER, Parity, ParityCount

KEPT: Final = 256
"""Transitions kept."""
_BASES: Final = (MSR_GS_BASE, MSR_KERNEL_GS_BASE)
_GATHERED: Final = 256
_NAMES: Final = {USER: "user", KERNEL: "kernel", UNKNOWN: "unknown"}


def parity_name(parity: int) -> str:
    """One of rules.parity's constants in a word."""
    return _NAMES[parity]


@dataclass(frozen=True, slots=True)
class Load:
    """The event that gave a base its value. ``pc``: guest virtual address of the instruction; ``how``: in a word."""

    event: int
    pc: int
    how: str


@dataclass(frozen=True, slots=True)
class Base:
    """A GS base: its value (None: not captured) and the load it comes from, None if that was not seen."""

    value: int | None = None
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class Swap:
    """A ``swapgs``: event number and guest virtual address."""

    event: int
    pc: int


@dataclass(frozen=True, slots=True)
class GsState:
    """One CPU as of the last event seen. ``parity``: USER, KERNEL or UNKNOWN, by count."""

    parity: int
    active: Base
    inactive: Base
    swap: Swap | None


@dataclass(frozen=True, slots=True)
class Transition:
    """One event that moved GS or crossed into or out of CPL 3. ``before``, ``after``: the parity by count."""

    event: int
    cpu: int
    pc: int
    what: str
    before: int
    after: int


@dataclass(slots=True)
class _Cpu:
    active: Base = field(default_factory=Base)
    inactive: Base = field(default_factory=Base)
    swap: Swap | None = None


class GsLog:
    """Takes batches in order of ``seq``."""

    def __init__(self) -> None:
        self._count = ParityCount()
        self._cpus: dict[int, _Cpu] = {}
        self._latest: list[tuple[Batch, Parity]] = []
        self._waiting: list[Batch] = []

    def put(self, batch: Batch) -> None:
        """Note events; cheap for single rows, which are looked at together."""
        self._waiting.append(batch)
        if len(batch) > 1 or len(self._waiting) >= _GATHERED:
            self._settle()

    def cpus(self) -> list[int]:
        """The CPUs that events were seen of, in order."""
        self._settle()
        return sorted(self._cpus)

    def state(self, cpu: int) -> GsState | None:
        """The state of a CPU, None if nothing was seen of it."""
        self._settle()
        known = self._cpus.get(cpu)
        if known is None:
            return None
        return GsState(self._count.after(cpu), known.active, known.inactive, known.swap)

    def parity(self, cpu: int) -> bool | None:
        """True: the kernel's base is active; False: the user's; None: not known."""
        self._settle()
        parity = self._count.after(cpu)
        return None if parity == UNKNOWN else parity == KERNEL

    def transitions(self, count: int, cpu: int | None = None) -> list[Transition]:
        """The last `count` transitions, of one CPU or of all, oldest first."""
        self._settle()
        found = [
            _transition(rows[index], int(parity[index]))
            for rows, parity in self._latest
            for index in range(len(rows))
            if cpu is None or int(rows["cpu"][index]) == cpu
        ]
        return found[-count:] if count > 0 else []

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._feed(waiting[0] if len(waiting) == 1 else np.concatenate(waiting))

    def _feed(self, batch: Batch) -> None:
        columns = Columns(np.ascontiguousarray(batch))
        parity = self._count.count(columns)
        moves = _moves(columns)
        chosen = np.flatnonzero(moves)[-KEPT:]
        if len(chosen):
            self._latest.append((batch[chosen].copy(), parity[chosen].copy()))
            while len(self._latest) > 1 and sum(len(rows) for rows, _ in self._latest[1:]) >= KEPT:
                del self._latest[0]
        for cpu in np.unique(batch["cpu"]):
            rows = batch[batch["cpu"] == cpu]
            self._one_cpu(self._cpus.setdefault(int(cpu), _Cpu()), rows)

    def _one_cpu(self, cpu: _Cpu, rows: Batch) -> None:
        """Follow the loads through the swaps, then take the values from the last row that shows them."""
        swaps = rows["kind"] == Kind.SWAPGS
        loads = (rows["kind"] == Kind.BASE) & np.isin(rows["addr"], _BASES)
        swapped = 0
        done = np.cumsum(swaps)
        for index in np.flatnonzero(loads).tolist():
            if (int(done[index]) - swapped) & 1:
                cpu.active, cpu.inactive = cpu.inactive, cpu.active
            swapped = int(done[index])
            _load(cpu, rows[index])
        if (int(done[-1]) - swapped) & 1:
            cpu.active, cpu.inactive = cpu.inactive, cpu.active
        last = np.flatnonzero(swaps)
        if len(last):
            cpu.swap = Swap(int(rows["seq"][last[-1]]), int(rows["pc"][last[-1]]))
        shown = np.flatnonzero((rows["flags"] & Flag.NO_BASES == 0) & (rows["kind"] <= Kind.SWITCH_IN))
        if len(shown):
            _show(cpu, rows[shown[-1]])


def _moves(rows: Columns) -> Bools:
    kind = rows["kind"]
    crossing = ((kind == Kind.ENTRY) | (kind == Kind.EXIT)) & is_user(rows)
    moves: Bools = crossing | (kind == Kind.SWAPGS) | ((kind == Kind.BASE) & np.isin(rows["addr"], _BASES))
    return moves


def _load(cpu: _Cpu, row: np.void) -> None:
    how = "wrgsbase" if int(row["how"]) == How.WRBASE else "wrmsr"
    base = Base(int(row["value"]), Load(int(row["seq"]), int(row["pc"]), how))
    if int(row["addr"]) == MSR_GS_BASE:
        cpu.active = base
    else:
        cpu.inactive = base


def _show(cpu: _Cpu, row: np.void) -> None:
    """Take the values that `row`, a CPU's last, was seen with; a base with another value was loaded unseen."""
    if int(row["kind"]) == Kind.BASE and int(row["addr"]) in _BASES:
        return  # its value is the newer one
    inactive = None if int(row["flags"]) & Flag.NO_KERNEL_GS else int(row["kernel_gs_base"])
    values: list[int | None] = [int(row["gs_base"]), inactive]
    if int(row["kind"]) == Kind.SWAPGS:
        values.reverse()
    cpu.active, cpu.inactive = (
        known if known.value == value else Base(value, None)
        for known, value in zip((cpu.active, cpu.inactive), values, strict=True)
    )


def _transition(row: np.void, before: int) -> Transition:
    kind, cpu = int(row["kind"]), int(row["cpu"])
    after = before
    if kind == Kind.SWAPGS:
        what = "swapgs"
        after = before if before == UNKNOWN else USER + KERNEL - before
    elif kind == Kind.BASE:
        which = "GS base" if int(row["addr"]) == MSR_GS_BASE else "KERNEL_GS_BASE"
        what = f"{which} = {int(row['value']):#x} by {'wrgsbase' if int(row['how']) == How.WRBASE else 'wrmsr'}"
    elif kind == Kind.ENTRY:
        what, after = f"entry from CPL 3 by {vectors.name(int(row['vector']))}", USER
        before = USER
    else:
        what, after = f"exit to CPL 3 by {How.name(int(row['how']))}", USER
    return Transition(int(row["seq"]), cpu, int(row["pc"]), what, before, after)


def line(transition: Transition, named: Callable[[int], str]) -> str:
    """One transition in a line; `named` gives an address with its symbol."""
    one = transition
    moved = parity_name(one.after)
    if one.before != one.after:
        moved = f"{parity_name(one.before)} -> {moved}"
    return f"  event {one.event:<8} CPU {one.cpu}  {moved:<14}  {one.what} at {named(one.pc)}"


def describe(state: GsState, named: Callable[[int], str], watched: bool = True) -> list[str]:
    """A CPU's bases and last swap, a line each. watched: events were followed, so that what is not known says why."""
    lines = [
        f"{which} base  {_base(base, named, watched)}"
        for which, base in (("active  ", state.active), ("inactive", state.inactive))
    ]
    if watched:
        lines.append(
            "last swapgs    " + (f"event {state.swap.event} at {named(state.swap.pc)}" if state.swap else "none")
        )
    return lines


def _base(base: Base, named: Callable[[int], str], watched: bool) -> str:
    if base.value is None:
        return "not captured"
    if base.load is None:
        return named(base.value) + (", loaded before the watch or by a selector" if watched else "")
    return f"{named(base.value)}, loaded by {base.load.how} in event {base.load.event} at {named(base.load.pc)}"
