"""Rules that need the guest's code beside the event: CW305 (red zone) and CW605 (flags that reach a handler).

Each place is decoded once; without code bytes nothing is judged.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

from gdbext.arch import flags as rf
from gdbext.arch import vectors
from gdbext.arch.registers import MSR_FMASK
from gdbext.code.disasm import Code, Flow, Insn
from gdbext.code.flags_on_entry import flags_on_entry
from gdbext.code.operands import Mem
from gdbext.code.paths import Entry, Gateway, Limits, explore
from gdbext.events.columns import SPREAD, Columns, Indices, any_of
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.ledger.compare import U64, contexts, is_user, writes
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.guest import GuestView

RED_ZONE: Final = 128
"""Bytes below RSP that a leaf function may use (System V AMD64 psABI, 3.2.2)."""
SLOT_BITS: Final = 17
"""Binary digits of the number of places remembered that were found spotless."""
NOWHERE: Final = np.uint64(2**64 - 1)
"""No place: no instruction begins at the last byte there is."""
AHEAD: Final = 48
"""Instructions looked ahead from an interrupted place."""
JUDGED_FLAGS: Final = rf.DF | rf.NT
"""AC is left out: without SMAP, which no event shows, nothing in the kernel depends on it."""


class CodeJudge:
    """Judges entries by the code they interrupt and the code they run."""

    def __init__(self, guest: GuestView) -> None:
        self._codes = {64: Code(guest.read, 64), 32: Code(guest.read, 32)}
        self._fmask: int | None = None
        self._leaks: dict[tuple[int, int, str], dict[int, int]] = {}
        self._spotless = np.full(1 << SLOT_BITS, NOWHERE)
        """Places whose code does not use a red zone, each in the slot of its hash, whence it ousts another."""
        self._uses: dict[tuple[int, int, bool], Insn | None] = {}

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the entries of a batch."""
        fmask, rows = writes(batch, MSR_FMASK), contexts(batch)
        entries = (rows["kind"] == Kind.ENTRY) & ((rows["flags"] & Flag.UNREADABLE) == 0)
        judged: list[Judged] = []
        odd = np.flatnonzero(entries & ((rows["rflags"] & JUDGED_FLAGS) != 0))
        doubtful = rows.pick(odd[rows.at("addr", odd) == 0])  # a task has flags of its own, which its TSS holds
        for at in range(len(doubtful)):
            row = doubtful[at : at + 1]
            known = fmask["value"][fmask["seq"] < row["seq"][0]]
            draft = self._flags(row, int(known[-1]) if len(known) else self._fmask)
            if draft is not None:
                judged.append((draft, row, None))
        nested = entries & ~is_user(rows) & (rows["mode"] == 64) & ((rows["flags"] & Flag.IST) == 0)
        judged += self._red_zones(rows.take(np.flatnonzero(nested)))
        if len(fmask):
            self._fmask = int(fmask["value"][-1])
        return judged

    def _red_zones(self, rows: Columns) -> list[Judged]:
        """Judge each interrupted place once, and every event at a guilty one, so that counts do not hang on batches."""
        if not len(rows):
            return []
        alias = (rows["rbp"] == rows["rsp"]).astype(np.uint64)
        places = rows["rip"] ^ (alias << np.uint64(60)) ^ ((rows["rsp"] & np.uint64(15)) << np.uint64(52))
        unknown = np.flatnonzero(self._spotless.take(_slots(places)) != places)
        distinct, first = np.unique(places[unknown], return_index=True)
        guilty: list[int] = []
        spotless: list[int] = []
        new = rows.pick(unknown[first])
        for at in np.argsort(first).tolist():
            uses = self._red_zone(new[at : at + 1])
            (spotless if uses is None else guilty).append(distinct[at])
        clean = np.array(spotless, np.uint64)
        self._spotless[_slots(clean)] = clean
        judged: list[Judged] = []
        for index in np.flatnonzero(any_of(places, guilty)).tolist():
            row = rows.row(index)
            draft = self._red_zone(row)
            if draft is not None:
                judged.append((draft, row, None))
        return judged

    def _flags(self, row: Batch, fmask: int | None) -> Draft | None:
        by_call = int(row["how"][0]) == How.SYSCALL
        if by_call and fmask is None:
            return None
        handler, bits = int(row["pc"][0]), 64 if row["mode"][0] == 64 else 32
        origin = "user" if bool(is_user(row)[0]) else "kernel"
        key = (handler, fmask if by_call and fmask is not None else -1, origin)
        if key not in self._leaks:
            code = self._codes[bits]
            gateway = Gateway.SYSCALL if by_call else Gateway.INTERRUPT
            entry = Entry(handler, gateway, int(row["vector"][0]))
            reach = explore(code, [entry], Limits(instructions=2000, calls=2))
            self._leaks[key] = flags_on_entry(code, reach, entry, fmask if by_call else None, origin)
        leaks = self._leaks[key]
        set_now = [bit for bit in leaks if bit & int(row["rflags"][0]) & JUDGED_FLAGS]
        if not set_now:
            return None
        names = rf.describe(sum(set_now))
        what = vectors.name(int(row["vector"][0]))
        cause = (
            f"{names} was set in the interrupted code when {what} came, and its handler reaches compiled code "
            f"or a string instruction at {leaks[set_now[0]]:#x} without clearing it"
        )
        look = "the entry path: cld (and clac) before the first call; for syscall the value of FMASK"
        flags = int(row["rflags"][0])
        return Draft("CW605", cause, look, (Difference("rflags", flags & ~sum(set_now), flags),))

    def _red_zone(self, row: Batch) -> Draft | None:
        rip, rsp = int(row["rip"][0]), int(row["rsp"][0])
        alias = bool(row["rbp"][0] == row["rsp"][0])
        spared = rsp & 15
        key = (rip, spared, alias)
        if key not in self._uses:
            self._uses[key] = self._first_use(rip, spared, alias)
        use = self._uses[key]
        if use is None:
            return None
        what = vectors.name(int(row["vector"][0]))
        cause = (
            f"{what} pushed its frame at {int(row['frame'][0]):#x}, over the {RED_ZONE} bytes below RSP of code that "
            f"keeps data there: {use.mnemonic} {use.op_str} at {use.address:#x} reads it"
        )
        look = "the compiler flags of this code: kernel code needs -mno-red-zone, or the vector an IST stack"
        return Draft("CW305", cause, look, (Difference("rsp", rsp - RED_ZONE, rsp),))

    def _first_use(self, rip: int, spared: int, alias: bool) -> Insn | None:
        """The first instruction ahead of `rip` that reads below RSP what was stored there before the interrupt.

        spared: bytes between RSP and the aligned address at which the CPU began to push.  alias: RBP equals RSP.  An
        indexed access may reach above RSP after all; it counts only where the function then returns with RSP as it
        is, so that it has no frame of its own.
        """
        code = self._codes[64]
        work: deque[tuple[int, frozenset[int], Insn | None]] = deque([(rip, frozenset(), None)])
        seen: set[tuple[int, bool]] = set()
        for _ in range(AHEAD):
            if not work:
                break
            address, written, indexed = work.popleft()
            insn = code.insn(address)
            if insn is None or (address, indexed is None) in seen:
                continue
            seen.add((address, indexed is None))
            mem = insn.memory if _names_stack(insn.op_str, alias) else None
            if mem is not None and _below_rsp(mem, alias) and -mem.disp > spared and not _only_orders(insn):
                if _only_writes(insn):
                    written |= {mem.disp}
                elif mem.disp not in written:
                    if not mem.index:
                        return insn
                    indexed = indexed or insn
            if insn.flow is Flow.RETURN and indexed is not None:
                return indexed
            work += [(then, written, indexed) for then in _ahead(insn, alias)]
        return None


def _slots(places: U64) -> Indices:
    """The slot of each place: the upper digits of a product that all its digits went into."""
    return (places * np.uint64(SPREAD) >> np.uint64(64 - SLOT_BITS)).astype(np.intp)


def _ahead(insn: Insn, alias: bool) -> list[int]:
    """Where the same function goes on with RSP (and RBP, where it stands for RSP) as it is."""
    if insn.name.startswith(("push", "pop")):
        return []
    if _names_stack(insn.op_str, alias) and (insn.writes_register("rsp") or (alias and insn.writes_register("rbp"))):
        return []
    branch = [insn.target] if insn.flow in (Flow.BRANCH, Flow.JUMP) and insn.target is not None else []
    return branch + ([insn.end] if insn.flow in (Flow.NEXT, Flow.BRANCH) else [])


def _names_stack(operands: str, alias: bool) -> bool:
    """False where no operand is RSP or lies beside it: most instructions, whose operands need no parsing then."""
    return "sp" in operands or (alias and "bp" in operands)


def _below_rsp(mem: Mem, alias: bool) -> bool:
    base = mem.base in ("rsp", "rbp") if alias else mem.base == "rsp"
    return base and not mem.segment and -RED_ZONE <= mem.disp < 0


def _only_orders(insn: Insn) -> bool:
    """True for what touches no data of the red zone: lea, and a locked add of zero, which is a memory barrier."""
    return insn.name == "lea" or insn.mnemonic.startswith("lock ")


def _only_writes(insn: Insn) -> bool:
    """True if the memory operand is the destination of a plain store."""
    return isinstance(insn.destination, Mem) and insn.name.startswith(("mov", "set", "vmov"))
