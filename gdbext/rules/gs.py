"""GS by parity: CW201, CW202, CW203, and handlers that ran on the wrong base or stack inside a window (CW501).

Everything is told from the order of entries, exits and swaps on one CPU: a rule looks at an event and the one or two
before it. A kernel that never swaps has no parity to get wrong, so that nothing is judged before the first
``swapgs`` behind an entry from user mode was seen. A handler that writes the GS base itself (a paranoid entry on a
CPU with FSGSBASE) is believed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gdbext.arch import vectors
from gdbext.arch.registers import MSR_GS_BASE
from gdbext.events.columns import NO_ROWS, Array, Columns, Joined, any_of, by_cpu
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.ledger.compare import Bools, crosses, is_user, mixed
from gdbext.rules import first_swap
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.parity import KERNEL, UNKNOWN, USER, Parity, ParityCount
from gdbext.rules.plain import PlainHandlers

LOOK_BACK: Final = 3
SHORT_CODE: Final = 64
"""Bytes of code within which two swaps make a deliberate pair (a GS selector loaded on the user's side)."""
ON_STACK: Final = 512
"""A frame this close below the interrupted RSP was pushed onto the interrupted stack."""
MAY_HIT_WINDOW: Final = (vectors.NMI, vectors.DB, vectors.MC, vectors.DF)
"""Vectors that can come in a window of a correct kernel."""


class _Line:
    """The events of one CPU in order, with the carried ones in front (``fresh`` is False for these).

    entry, exit, swap: what each event is.  user: entries from user code, and exits to it.  from_user: the entries.
    """

    __slots__ = ("entry", "exit", "fresh", "from_user", "parity", "rows", "swap", "user")

    def __init__(self, old: Batch, old_parity: Parity, rows: Columns, parity: Parity) -> None:
        self.rows = Joined(old, rows)
        self.parity = np.concatenate((old_parity, parity))
        self.fresh = np.arange(len(self.rows)) >= len(old)
        kind = self.rows["kind"]
        self.user = np.concatenate((crosses(Columns(old)), crosses(rows)))
        self.entry, self.exit, self.swap = kind == Kind.ENTRY, kind == Kind.EXIT, kind == Kind.SWAPGS
        self.from_user = self.entry & self.user


def _behind(events: Bools, steps: int = 1) -> Bools:
    """For each event whether the one `steps` before it is among `events`; False for the first ones."""
    found = np.zeros(len(events), bool)
    found[steps:] = events[:-steps]
    return found


class GsJudge:
    """Follows GS on every CPU."""

    def __init__(self) -> None:
        self._count = ParityCount()
        self._carried: dict[int, tuple[Batch, Parity]] = {}
        self._in_window: dict[int, list[tuple[int, int]]] = {}
        self._user_rsp: dict[int, int] = {}
        self._plain = PlainHandlers()
        self._swaps_since: int | None = None
        self._swaps_until: int | None = None
        """The event from which on the swaps are known to serve something else than a base of the kernel's own."""
        self.based = Columns(NO_ROWS)
        """Events of the last batch at which the kernel's base stands, by count, in KERNEL_GS_BASE or in GS base."""
        self.waits: Bools = np.zeros(0, bool)
        """At which of them it waits in KERNEL_GS_BASE."""
        self.first_exits: dict[int, Batch] = {}
        """By CPU, its first return to user mode where no count led up to it: whether it should have swapped shows only
        in the bases that user code was then seen with."""
        self._first_swap: int | None = None
        self._first_judged = False
        self._exit_swaps: dict[int, int] = {}
        self._entry_swaps: dict[int, int] = {}
        self._pairs: dict[int, int] = {}
        """By a hash of both their addresses."""

    @property
    def swaps_since(self) -> int | None:
        """The event at which the kernel was first seen to swap on an entry from user mode, or None."""
        return self._swaps_since

    def swaps_at(self, events: npt.NDArray[Any]) -> Bools:
        """At which of `events` the kernel is known to swap to a base of its own, and not to have other uses for it."""
        if self._swaps_since is None:
            return np.zeros(len(events), bool)
        known: Bools = events > self._swaps_since
        return known if self._swaps_until is None else known & (events < self._swaps_until)

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge a batch in order of ``seq``."""
        relevant = batch.take(np.flatnonzero(_relevant(batch)))
        self.based, self.waits = relevant.take(np.zeros(0, np.intp)), np.zeros(0, bool)
        if not len(relevant):
            return []
        parity = self._count.count(relevant)
        kind, crosses_now = relevant["kind"], crosses(relevant)
        for at in np.flatnonzero((kind == Kind.EXIT) & crosses_now & (parity == UNKNOWN)).tolist():
            self.first_exits.setdefault(int(relevant["cpu"][at]), relevant.row(at).copy())
        crossing = crosses_now & (parity == USER)
        nested = (kind == Kind.ENTRY) & ~crosses_now & (parity == KERNEL)
        known = np.flatnonzero(crossing | nested)
        self.based, self.waits = relevant.take(known), crossing[known]
        lines = {cpu: self._line(cpu, rows, parity[mine]) for cpu, (mine, rows) in by_cpu(relevant).items()}
        for line in lines.values():  # of all CPUs first: what one shows holds for the others from then on
            rounds = np.flatnonzero(line.exit & line.user & _behind(line.from_user) & line.fresh)
            self._plain.note(line.rows.at("pc", rounds - 1), line.rows.at("seq", rounds))
        for line in lines.values():
            self._learn(line)
        early = [] if self._first_judged else self._judge_first(relevant, lines.values())
        early += [judged for line in lines.values() for judged in self._before_first(line)]
        return early + [judged for cpu, line in lines.items() for judged in self._one_cpu(cpu, line)]

    def _judge_first(self, relevant: Columns, lines: Iterable[_Line]) -> list[Judged]:
        """Judge the first swap of all by what is around it, once the event behind it has come."""
        if self._first_swap is None:
            swaps = relevant["seq"][relevant["kind"] == Kind.SWAPGS]
            if not len(swaps):
                return []
            self._first_swap = int(swaps[0])
        for line in lines:
            events = line.rows["seq"]
            at = int(np.searchsorted(events, self._first_swap))
            if at + 1 >= len(events) or events[at] != self._first_swap:
                continue
            self._first_judged = True
            if at and line.parity[at] == UNKNOWN:
                entry, swap, then = (line.rows.row(place) for place in (at - 1, at, at + 1))
                draft = first_swap.judge(entry, swap, then) or first_swap.judge_exit(entry, swap, then)
                return [(draft, swap, entry)] if draft else []
        return []

    def _before_first(self, line: _Line) -> list[Judged]:
        """Entries from user mode before any was seen to swap, whose handler faults by what it finds at the user's GS
        base while the kernel's waits."""
        rows = line.rows
        faults = line.entry & ~line.user & (line.parity == USER) & line.fresh
        faults &= _behind(rows["kind"] == Kind.GS_ACCESS) & _behind(line.from_user, 2)
        places = np.flatnonzero(faults)
        if self._swaps_since is not None:
            places = places[rows.at("seq", places) < self._swaps_since]
        judged: list[Judged] = []
        for entry, access, fault in ((rows.row(at - 2), rows.row(at - 1), rows.row(at)) for at in places.tolist()):
            if first_swap.is_missing(entry, access, fault):
                judged.append((_ran_unswapped(entry, fault), entry, None))
        return judged

    def _line(self, cpu: int, rows: Columns, parity: Parity) -> _Line:
        line = _Line(*self._carried.get(cpu, (np.zeros(0, rows.dtype), parity[:0])), rows, parity)
        self._carried[cpu] = line.rows.last(LOOK_BACK), line.parity[-LOOK_BACK:]
        return line

    def _one_cpu(self, cpu: int, line: _Line) -> list[Judged]:
        judged: list[Judged] = []
        on_user_stack = self._on_user_stack(line, cpu)
        odd = np.flatnonzero((self._odd(line) | on_user_stack) & line.fresh)
        swapping = self.swaps_at(line.rows.at("seq", odd)).tolist()
        for index, swaps in zip(odd.tolist(), swapping, strict=True):
            if on_user_stack[index]:
                row = line.rows.row(index)
                judged.append((_on_users_stack(row, swaps and line.parity[index] == USER), row, None))
            if swaps:
                told = ("CW501", "CW202") if index and on_user_stack[index - 1] else ()
                judged += [item for item in self._judge(line, cpu, index) if item[0].code not in told]
        return judged

    def _learn(self, line: _Line) -> None:
        """When swaps began, which swapgs serve entries and exits, and which two make a pair around a selector load,
        each with the event that showed it."""
        rows = line.rows
        hits = np.flatnonzero(line.swap & _behind(line.from_user) & line.fresh)
        seqs = rows.at("seq", hits)
        others = self._plain.swap(rows.at("pc", hits - 1), seqs)
        if others.any():
            first_other = int(seqs[others][0])
            self._swaps_until = min(self._swaps_until or first_other, first_other)
            hits, seqs = hits[~others], seqs[~others]
        if len(hits):
            first_swap = int(seqs[0])
            self._swaps_since = min(self._swaps_since or first_swap, first_swap)
        _note_first(self._entry_swaps, rows.at("pc", hits), seqs)
        returns, in_kernel = line.exit & line.user, line.parity == KERNEL
        back = _behind(line.swap & in_kernel)
        hits = np.flatnonzero(back & (line.parity == USER) & returns & line.fresh)
        _note_first(self._exit_swaps, rows.at("pc", hits - 1), rows.at("seq", hits))
        hits = np.flatnonzero(_behind(back) & _behind(line.swap) & in_kernel & ~returns & line.fresh)
        places = mixed(rows.at("pc", hits - 2), rows.at("pc", hits - 1), np.uint64(0))
        _note_first(self._pairs, places, rows.at("seq", hits))

    def _odd(self, line: _Line) -> Bools:
        """Events that need a look: anything but the regular entry, swap, swap, exit."""
        in_kernel, in_user = line.parity == KERNEL, line.parity == USER
        returns, nested = line.exit & line.user, line.entry & ~line.user
        odd = returns & in_kernel
        odd |= line.exit & ~line.user & in_user
        odd |= nested & in_user
        odd |= line.rows["kind"] == Kind.GS_ACCESS
        odd |= _behind(nested & in_user)
        odd |= _behind(line.swap & in_kernel) & ~returns & _behind(nested & in_kernel, 2)
        result: Bools = odd
        return result

    def _on_user_stack(self, line: _Line, cpu: int) -> Bools:
        """Entries from kernel code whose RSP was still, or again, the user's and whose frame went onto that stack; or
        could not, so that a double fault came."""
        rows = line.rows
        numbers = np.arange(1, len(rows) + 1, dtype=np.int32)
        latest = np.maximum.accumulate(np.where(line.from_user, numbers, np.int32(0)))
        known = self._user_rsp.get(cpu, 0)
        if latest[-1]:
            self._user_rsp[cpu] = int(rows.at("rsp", latest[-1:] - 1)[0])
        nested = np.flatnonzero(line.entry & ~line.user)
        nested = nested[rows.at("mode", nested) == 64]
        before, stack, top = latest[nested], rows.at("rsp", nested), np.uint64(63)
        user_rsp = np.where(before > 0, rows.at("rsp", np.maximum(before - 1, 0)), np.uint64(known))
        users = (stack == user_rsp) & (user_rsp != 0)
        low = (stack >> top == 0) & (stack != 0)
        some = np.flatnonzero(users | low)
        its = rows.take(nested[some])
        users = users[some] | (low[some] & (its["pc"] >> top == 1))
        there = (its["rsp"] - its["frame"] <= ON_STACK) | (its["vector"] == vectors.DF)
        result = np.zeros(len(rows), bool)
        result[nested[some]] = users & there
        return result

    def _judge(self, line: _Line, cpu: int, index: int) -> list[Judged]:
        rows, parity = line.rows, line.parity
        row = rows.row(index)
        kind, user = int(row["kind"][0]), bool(is_user(row)[0])
        judged = self._judge_before(line, index)
        if judged and kind == Kind.EXIT:
            return judged
        if kind == Kind.EXIT and user and parity[index] == KERNEL:
            judged += self._exit_to_user(line, index)
        elif kind == Kind.EXIT and not user and parity[index] == USER:
            judged += self._exit_to_kernel(cpu, row)
        elif kind == Kind.ENTRY and not user and parity[index] == USER:
            waiting = self._in_window.setdefault(cpu, [])
            waiting.append((int(row["rip"][0]), int(row["rsp"][0])))
            del waiting[:-16]
        elif kind == Kind.GS_ACCESS:
            judged += self._gs_access(line, index)
        return judged

    def _judge_before(self, line: _Line, index: int) -> list[Judged]:
        """What this event tells about the one before it."""
        if index < 1:
            return []
        row, last = line.rows.row(index), line.rows.row(index - 1)
        two = line.rows.row(index - 2) if index > 1 else None
        swapped = last["kind"][0] == Kind.SWAPGS and line.parity[index - 1] == KERNEL
        if swapped and two is not None and _from_kernel(two) and line.parity[index - 2] == KERNEL:
            return [(_entry_swapped(two), last, two)] if self._belongs_to_entry(last, row) else []
        if _from_kernel(last) and line.parity[index - 1] == USER and row["kind"][0] not in (Kind.SWAPGS, Kind.BASE):
            if two is not None and _from_user(two) and _past_entry(two, last):
                return [(_ran_unswapped(two, last), two, None)]
            early = _from_kernel(row) and int(row["vector"][0]) in MAY_HIT_WINDOW  # the handler may yet swap
            return [] if early else [(_not_paranoid(last, two), last, None)]
        return []

    def _belongs_to_entry(self, swap: Batch, then: Batch) -> bool:
        """True if `then`, the event behind a swap in a handler of kernel code, shows that the entry had swapped.

        Shown by kernel code that goes on: an access, another swap (not the one of a selector load), a fault further
        on; or by the instruction itself, where it was seen to serve entries from user mode and the handler returns.
        """
        kind, distance = int(then["kind"][0]), abs(int(then["pc"][0]) - int(swap["pc"][0]))
        if kind == Kind.SWAPGS:
            return distance > SHORT_CODE
        if kind == Kind.ENTRY:
            return _raised_by_code(then) and abs(int(then["rip"][0]) - int(swap["pc"][0])) > first_swap.NEXT_INSN
        if kind == Kind.EXIT:
            seen = self._entry_swaps.get(int(swap["pc"][0]))
            return not bool(is_user(then)[0]) and seen is not None and seen < int(then["seq"][0])
        return kind == Kind.GS_ACCESS

    def _exit_to_user(self, line: _Line, index: int) -> list[Judged]:
        """The kernel's base is active at a return to user mode: who swapped wrongly?"""
        row = line.rows.row(index)
        last = line.rows.row(index - 1) if index else row
        two = line.rows.row(index - 2) if index > 1 else None
        if last["kind"][0] == Kind.SWAPGS and two is not None:
            if two["kind"][0] == Kind.SWAPGS:
                pair = self._pairs.get(int(mixed(two["pc"], last["pc"], np.uint64(0))[0]))
                deliberate = pair is not None and pair < int(row["seq"][0])  # the exit itself has not swapped
                return [(_wrong_at_exit(row, "user") if deliberate else _swapped_twice(two), row, None)]
            serves_exits = self._exit_swaps.get(int(last["pc"][0]))
            if _from_user(two) and serves_exits is not None and serves_exits < int(row["seq"][0]):
                return [(_never_swapped(two), two, None)]
            if _from_kernel(two) and line.parity[index - 2] == USER:
                three = line.rows.row(index - 3) if index > 2 else None
                return [(_not_paranoid(two, three), two, None)]
        return [(_wrong_at_exit(row, "user"), row, None)]

    def _exit_to_kernel(self, cpu: int, row: Batch) -> list[Judged]:
        place = int(row["rip"][0]), int(row["rsp"][0])
        waiting = self._in_window.get(cpu, [])
        for known in reversed(waiting):
            if known[0] == place[0] or known[1] == place[1]:
                waiting.remove(known)
                return []
        return [(_wrong_at_exit(row, "kernel"), row, None)]

    def _gs_access(self, line: _Line, index: int) -> list[Judged]:
        """A gs: access on the user's base: blame what left it active, once."""
        row = line.rows.row(index)
        last = line.rows.row(index - 1) if index else row
        last_kind = int(last["kind"][0])
        if last_kind in (Kind.GS_ACCESS, Kind.BASE) or _from_kernel(last):
            return []
        two = line.rows.row(index - 2) if index > 1 else None
        if last_kind == Kind.SWAPGS:
            nested = two is not None and _from_kernel(two)
            return [] if nested else [(_access_after_swap(row, last), last, None)]
        if _from_user(last):
            return [(_access_unswapped(row, last), row, last)]
        return [(_access_unswapped(row, None), row, None)]


def _note_first(known: dict[int, int], places: Array, seqs: Array) -> None:
    """Enter each of `places` that is not known with the first of its events."""
    new = np.flatnonzero(~any_of(places, known))
    for place, seq in zip(places[new].tolist(), seqs[new].tolist(), strict=True):
        known.setdefault(place, seq)


def _relevant(batch: Columns) -> Bools:
    kind = batch["kind"]
    chosen = (kind == Kind.ENTRY) | (kind == Kind.EXIT) | (kind == Kind.SWAPGS) | (kind == Kind.GS_ACCESS)
    base = np.flatnonzero(kind == Kind.BASE)
    chosen[base] = batch.at("addr", base) == MSR_GS_BASE
    relevant: Bools = chosen & ((batch["flags"] & (Flag.SELF | Flag.UNREADABLE)) == 0)
    return relevant


def _from_user(row: Batch) -> bool:
    return bool(row["kind"][0] == Kind.ENTRY and is_user(row)[0])


def _from_kernel(row: Batch) -> bool:
    return bool(row["kind"][0] == Kind.ENTRY and not is_user(row)[0])


def _raised_by_code(row: Batch) -> bool:
    """True for exceptions that the interrupted code itself raises (page fault, #GP ...)."""
    vector = int(row["vector"][0])
    return vectors.is_exception(vector) and vector not in MAY_HIT_WINDOW


def _past_entry(entry: Batch, then: Batch) -> bool:
    """True if `then` interrupted kernel code that the handler of `entry` had reached beyond its first instructions."""
    far = abs(int(then["rip"][0]) - int(entry["pc"][0])) > SHORT_CODE
    return _raised_by_code(then) or (far and int(then["vector"][0]) not in MAY_HIT_WINDOW)


def _what(row: Batch) -> str:
    return vectors.name(int(row["vector"][0]))


def _at(row: Batch) -> str:
    return f"{int(row['pc'][0]):#x}"


def _bases(row: Batch) -> tuple[Difference, ...]:
    """The active base beside the one that should be."""
    if row["flags"][0] & (Flag.NO_BASES | Flag.NO_KERNEL_GS):
        return ()
    return (Difference("gs_base", int(row["kernel_gs_base"][0]), int(row["gs_base"][0])),)


def _wrong_at_exit(row: Batch, to: str) -> Draft:
    active = "kernel" if to == "user" else "user"
    name = How.name(int(row["how"][0]))
    cause = f"{name} returns to {to} code with the {active}'s GS base active (by count of the swapgs since CPL 3)"
    return Draft(
        "CW201", cause, "how this exit path decides to swap: from the saved CS, at the right offset?", _bases(row)
    )


def _swapped_twice(first: Batch) -> Draft:
    cause = f"the exit path swapped twice (first at {_at(first)}): user code gets the kernel's GS base"
    return Draft("CW203", cause, "the branches between the two swapgs and the return", _bases(first))


def _entry_swapped(entry: Batch) -> Draft:
    cause = f"{_what(entry)} interrupted kernel code, and its handler swapped: it now runs on the user's GS base"
    return Draft("CW203", cause, "which word the entry tests for the privilege level: CS, with or without error code")


def _never_swapped(entry: Batch) -> Draft:
    cause = f"{_what(entry)} came from user code and its handler did not swap, but the exit did"
    return Draft(
        "CW202", cause, f"the entry path at {_at(entry)}: it needs the swapgs its siblings have", _bases(entry)
    )


def _ran_unswapped(entry: Batch, fault: Batch) -> Draft:
    cause = (
        f"{_what(entry)} came from user code and its handler did not swap; kernel code ran on the user's GS base until "
        f"{_what(fault)} at {int(fault['rip'][0]):#x}"
    )
    return Draft("CW202", cause, f"the entry path at {_at(entry)}: where is its swapgs?", _bases(fault))


def _access_unswapped(row: Batch, entry: Batch | None) -> Draft:
    cause = f"kernel code accesses gs: at {int(row['addr'][0]):#x} with the user's base active"
    if entry is None:
        return Draft("CW202", cause, "the last path into the kernel on this CPU", _bases(row))
    cause += f": the entry by {_what(entry)} has not swapped"
    return Draft("CW202", cause, f"the entry path at {_at(entry)}: where is its swapgs?", _bases(row))


def _access_after_swap(row: Batch, swap: Batch) -> Draft:
    cause = f"the swapgs at {_at(swap)} made the user's base active, and kernel code at {_at(row)} goes on to use gs:"
    return Draft("CW203", cause, "why this path swaps while it stays in the kernel", _bases(row))


def _on_users_stack(entry: Batch, users_base: bool) -> Draft:
    """`users_base`: the user's GS base was active besides; the two are one state, half on its way to or from CPL 3."""
    place = f"interrupted kernel code at {int(entry['rip'][0]):#x} while RSP was the user's"
    if entry["vector"][0] == vectors.DF:
        cause = f"an exception {place}: its frame could not be pushed there, which is {_what(entry)}"
    else:
        cause = (
            f"{_what(entry)} {place}, without an IST stack: its frame was pushed to {int(entry['frame'][0]):#x}, "
            "memory that user code controls"
        )
    look = (
        "what lets this vector in between syscall and the stack switch (or between the switch back and sysret): "
        "interrupts on, a breakpoint, a fault; non-IST exceptions there are fatal"
    )
    found = (Difference("rsp", None, int(entry["rsp"][0])),)
    if not users_base:
        return Draft("CW501", cause, look, found)
    cause += "; the user's GS base was active, too, which CS does not tell the handler"
    return Draft("CW501", cause, look, (*found, *_bases(entry)))


def _not_paranoid(entry: Batch, before: Batch | None) -> Draft:
    """`before`: the event before the entry; an exit at the interrupted instruction has itself faulted."""
    if before is not None and before["kind"][0] == Kind.EXIT and before["pc"][0] == entry["rip"][0]:
        cause = (
            f"{_what(entry)} was raised by the return itself at {int(entry['rip'][0]):#x}, after the swap to the "
            "user's GS base; its handler took CS for an answer and did not swap back"
        )
        look = "the handler's check for a faulting iret: it must swap although CS says kernel"
        return Draft("CW201", cause, look, _bases(entry))
    cause = (
        f"{_what(entry)} interrupted kernel code at {int(entry['rip'][0]):#x} while the user's GS base was active, and "
        "its handler did not swap: a non-paranoid exception outside swapgs"
    )
    if int(entry["vector"][0]) in MAY_HIT_WINDOW:
        look = "the entry of this vector: CS does not tell which base is active, it must read GS or the MSR"
    else:
        look = "what lets this vector in between the swapgs and the return (or the entry): interrupts on, or a fault"
    return Draft("CW501", cause, look, _bases(entry))
