"""The CS/SS pair of user contexts: CW604, blamed on the return that loaded it.

``sysret`` loads both from STAR and checks neither; a wrong pair shows at the next entry from user mode, where the CPU
pushes it, and kills at the next ``iret`` to the context. Wrong is an SS whose RPL is not 3, one that names the
descriptor of the kernel's own stack segment, and a pair on one of whose selectors an ``iret`` faulted (the error code
names it: Intel SDM vol. 2, IRET).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gdbext.arch import flags as rf
from gdbext.arch import vectors
from gdbext.arch.registers import MSR_STAR
from gdbext.events.columns import Columns, Rows, any_of, by_cpu
from gdbext.events.row import Batch, Flag, How, Kind, concat
from gdbext.ledger.compare import Bools, contexts, is_user, resuming
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference

KEPT = 16
"""Events of a CPU looked back over: the exit that loaded a pair is a few events before the entry it shows at."""
MOST_CARRIED = 8 * KEPT
"""Events of a CPU carried over before those that cannot matter any more are left out."""
_SELECTOR = 0xFFFC
"""A descriptor as a selector or an error code names it: index and table, without RPL."""
_RETURN_FAULTS = (vectors.TS, vectors.NP, vectors.SS, vectors.GP, vectors.UNKNOWN)
"""Vectors of a fault on a selector; a handler that serves several of them does not tell which it was."""


class SelectorJudge:
    """Follows which return loaded the selectors that each CPU's user code runs with."""

    def __init__(self) -> None:
        self._kernel: dict[int, int] = {}
        self._carried: dict[int, Batch] = {}
        self._sysrets: dict[int, Batch] = {}
        """The first sysret that loaded each pair, CS above SS (with the RPL that it is given on some CPUs)."""
        self._told: set[tuple[int, int]] = set()

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge a batch in order of ``seq``."""
        rows = resuming(contexts(batch))
        judged: list[Judged] = []
        if not len(rows):
            return judged
        self._learn(rows)
        odd = self._odd(rows)
        for cpu, (mine, _) in by_cpu(rows).items():
            for index in mine[odd[mine]].tolist():
                judged += self._judge(self._line(cpu, rows, mine[mine <= index]))
            line = self._line(cpu, rows, mine[-KEPT:])
            self._carried[cpu] = _worth_keeping(line) if len(line) > MOST_CARRIED else line
        return judged

    def _line(self, cpu: int, rows: Columns, mine: npt.NDArray[np.intp]) -> Batch:
        """The last events of `cpu` up to the last of `mine`, what was carried over in front."""
        new = rows.pick(mine[-KEPT:])
        old = self._carried.get(cpu, new[:0])
        return concat((old, new))

    def _learn(self, rows: Columns) -> None:
        """Descriptors that kernel code runs on, with the event that showed each."""
        innermost = (rows["cs"] & 3 == 0) & ~is_user(rows)
        own = np.flatnonzero((rows["kind"] == Kind.ENTRY) & innermost & ((rows["ss"] & _SELECTOR) != 0))
        index = rows["ss"][own] & _SELECTOR
        for at in np.flatnonzero(~any_of(index, self._kernel)).tolist():
            self._kernel.setdefault(int(index[at]), int(rows["seq"][own[at]]))
        loads = np.flatnonzero((rows["kind"] == Kind.EXIT) & (rows["how"] == How.SYSRET))
        pairs = rows["cs"][loads].astype(np.uint32) << np.uint32(16) | rows["ss"][loads] | 3
        new = np.flatnonzero(~any_of(pairs, self._sysrets))
        for pair, first in zip(*(found.tolist() for found in np.unique(pairs[new], return_index=True)), strict=True):
            self._sysrets[pair] = rows.row(int(loads[new[first]])).copy()

    def _odd(self, rows: Columns) -> Bools:
        entry, user = rows["kind"] == Kind.ENTRY, is_user(rows)
        framed = _framed_from_user(rows) | (~entry & user & (rows["how"] == How.IRET))
        wrong = ((rows["ss"] & 3) != 3) | any_of(rows["ss"] & _SELECTOR, self._kernel)
        odd: Bools = framed & wrong & ((rows["rflags"] & rf.VM) == 0)
        kernel = np.flatnonzero(entry & ~user)
        faults = kernel[any_of(rows["vector"][kernel], _RETURN_FAULTS)]
        odd[faults] |= (rows.at("error", faults) & _SELECTOR) != 0
        return odd

    def _judge(self, line: Batch) -> list[Judged]:
        """Judge the last event of `line`."""
        row = line[-1:]
        if not bool(is_user(row)[0]):
            return self._judge_fault(line)
        pair = int(row["cs"][0]), int(row["ss"][0])
        why = self._why(row)
        if pair in self._told or not why:
            return []
        self._told.add(pair)
        blamed = row
        if row["kind"][0] == Kind.ENTRY:
            before = _returns(line[:-1])[-1:]
            blamed = before if len(before) else row
        return [(_draft(blamed, pair, why), row, None)]

    def _why(self, row: Batch) -> str:
        ss = int(row["ss"][0])
        if ss & 3 != 3:
            return f"SS has privilege level {ss & 3}"
        learnt = self._kernel.get(ss & _SELECTOR)
        if learnt is not None and learnt < int(row["seq"][0]):
            return "SS names the descriptor of the kernel's own stack segment"
        return ""

    def _judge_fault(self, line: Batch) -> list[Judged]:
        """An iret to user mode that faulted on one of its selectors, in a context that a sysret had made."""
        row, before = line[-1:], line[:-1]
        left = before[-1:]
        if not len(left) or left["kind"][0] != Kind.EXIT or left["pc"][0] != row["rip"][0]:
            return []
        pair = int(left["cs"][0]), int(left["ss"][0])
        named = [name for name in ("ss", "cs") if int(left[name][0]) & _SELECTOR == int(row["error"][0]) & _SELECTOR]
        if pair in self._told or not named or not bool(is_user(left)[0]):
            return []
        loaded = self._sysrets.get(pair[0] << 16 | pair[1] | 3, left[:0])
        shown = before[_framed_from_user(before)][-1:]
        if len(shown) and (int(shown["cs"][0]), int(shown["ss"][0])) == pair:
            last = _loader(before, shown)
            loaded = last if len(last) and last["how"][0] == How.SYSRET else loaded
        if not len(loaded):
            return []
        self._told.add(pair)
        why = f"the iret to this context faulted on {named[0].upper()}"
        return [(_draft(loaded, pair, why, named[0]), row, None)]


def _worth_keeping(line: Batch) -> Batch:
    """Of the events seen so far, those that later ones may be judged by."""
    shown = line[_framed_from_user(line)][-1:]
    last = concat((_loader(line, shown), _returns(line)[-1:], shown, line[-1:]))
    kept: Batch = last[np.unique(last["seq"], return_index=True)[1]]
    return kept


def _returns(rows: Batch) -> Batch:
    """The exits to user mode."""
    found: Batch = rows[(rows["kind"] == Kind.EXIT) & is_user(rows)]
    return found


def _loader(rows: Batch, shown: Batch) -> Batch:
    """The last exit to user mode before the entry `shown` (a batch of one, or empty)."""
    return _returns(rows[rows["seq"] < shown["seq"][0]])[-1:] if len(shown) else rows[:0]


def _framed_from_user(rows: Rows) -> Bools:
    """Entries from user mode for which the CPU pushed CS and SS."""
    how = rows["how"]
    pushed = (rows["kind"] == Kind.ENTRY) & (how != How.SYSCALL) & (how != How.SYSENTER)
    framed: Bools = pushed & ((rows["cs"] & 3) == 3) & ((rows["flags"] & Flag.NO_STACK) == 0)
    return framed


def _draft(blamed: Batch, pair: tuple[int, int], why: str, faulted: str = "") -> Draft:
    """faulted: the one of the pair on which an iret has faulted already."""
    cs, ss = pair
    field, wrong = ("cs", cs) if faulted == "cs" else ("ss", ss)
    if int(blamed["how"][0]) == How.SYSRET:
        cause = (
            f"sysret loaded SS {ss:#x} (from STAR[63:48]+8) beside CS {cs:#x} (from STAR[63:48]+16): {why}; "
            f"sysret checks neither{'' if faulted else ', the next iret to this context faults'}"
        )
    else:
        name = How.name(int(blamed["how"][0]))
        cause = f"user code runs with CS {cs:#x} and SS {ss:#x} since {name}: {why}; the next iret to it faults"
    look = f"the value written to STAR (MSR {MSR_STAR:#x}) and the order and RPL of the user descriptors in the GDT"
    return Draft("CW604", cause, look, (Difference(field, wrong | 3, wrong),), blame=blamed)
