"""Faults of kernel code without end: CW901.

A fault that comes at one instruction again and again, on a CPU that resumes nothing in between: either each on top of
the one before, until the stack is used up, or each with the very context of the one before. No handler gets anywhere
any more. Named as soon as it is certain, for nothing else may follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from gdbext.arch import vectors
from gdbext.events.columns import Columns, by_cpu
from gdbext.events.row import Batch, Kind
from gdbext.ledger.compare import Bools, contexts, crosses, gprs
from gdbext.rules.codes import ERROR
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.history import TURNS

DEEPER: Final = 16
"""So many in a row, each on top of the one before: no kernel's exceptions nest as deep."""
AGAIN: Final = 64
"""So many in a row of one context."""
_FAULTS: Final = (vectors.DE, vectors.UD, vectors.TS, vectors.NP, vectors.SS, vectors.GP, vectors.PF, vectors.AC)
_IS_FAULT: Final = np.isin(np.arange(1 << 16), _FAULTS)
_COUNTS: Final = np.isin(np.arange(1 << 8), (Kind.ENTRY, Kind.EXIT, *TURNS))
"""Kinds of events that end a row of faults."""
_SAME: Final = ("vector", "pc", "rip", "error", "cs")


@dataclass(slots=True)
class _Row:
    """Faults in a row: the first, the last, how many went deeper, and how many were of one context."""

    first: int
    last: Batch
    deeper: int = 1
    again: int = 1

    def add(self, row: Batch) -> bool:
        """Count the fault `row`; False if it is of another kind."""
        if any(row[name][0] != self.last[name][0] for name in _SAME):
            return False
        same = row["frame"][0] == self.last["frame"][0] and row["cr2"][0] == self.last["cr2"][0]
        self.deeper = self.deeper + 1 if row["frame"][0] < self.last["frame"][0] else 1
        self.again = self.again + 1 if same and (gprs(row) == gprs(self.last)).all() else 1
        self.last = row.copy()
        return True

    @property
    def endless(self) -> bool:
        """True once no handler can get anywhere any more."""
        return self.deeper >= DEEPER or self.again >= AGAIN


class StormJudge:
    """Follows, by CPU, faults of kernel code with nothing in between."""

    def __init__(self) -> None:
        self._rows: dict[int, _Row] = {}
        self._told: set[int] = set()
        """CPUs that were told."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the faults of kernel code in a batch in order of ``seq``."""
        if not self._rows and not _faults(contexts(batch)).any():
            return []
        rows = batch.take(np.flatnonzero(_COUNTS[batch["kind"]]))
        faults = _faults(rows)
        judged: list[Judged] = []
        for cpu, (mine, its) in by_cpu(rows).items():
            is_fault = faults[mine]
            if cpu not in self._rows and not (is_fault[1:] & is_fault[:-1]).any():
                if is_fault[-1]:
                    self._add(cpu, its.row(len(its) - 1))
                continue
            if not is_fault[0]:
                self._rows.pop(cpu, None)
            for at in np.flatnonzero(is_fault).tolist() if cpu not in self._told else ():
                if at and not is_fault[at - 1]:
                    self._rows.pop(cpu, None)
                judged += self._add(cpu, its.row(at))
            if not is_fault[-1]:
                self._rows.pop(cpu, None)
        return judged

    def _add(self, cpu: int, row: Batch) -> list[Judged]:
        faults = self._rows.get(cpu)
        if cpu in self._told:
            return []
        if faults is None or not faults.add(row):
            self._rows[cpu] = _Row(int(row["seq"][0]), row.copy())
            return []
        if not faults.endless:
            return []
        self._told.add(cpu)
        del self._rows[cpu]
        return [(_draft(faults, row), row.copy(), None)]


def _faults(rows: Columns) -> Bools:
    """True for the faults of kernel code."""
    faults: Bools = _IS_FAULT[rows["vector"]] & (rows["kind"] == Kind.ENTRY) & ~crosses(rows)
    return faults


def _draft(faults: _Row, row: Batch) -> Draft:
    count, frame = max(faults.deeper, faults.again), int(row["frame"][0])
    how = f"each on top of the one before: the stack has come down to {frame:#x}" if faults.deeper > 1 else "just alike"
    what = vectors.name(int(row["vector"][0]))
    cause = (
        f"{what} comes at {int(row['rip'][0]):#x} again and again, {count} times in a row "
        f"on CPU {int(row['cpu'][0])} with nothing resumed in between, {how}; the first is event {faults.first}"
    )
    look = (
        "what the instruction at that place loads or reaches (a selector, a frame, the stack), and the last entry or "
        "switch before the first of these faults: on which stack, or from which save area, the code that faults goes on"
    )
    return Draft("CW901", cause, look, (), ERROR)
