"""An FPU switched lazily (CR0.TS, #NM) that comes back with another's registers: CW105.

With CR0.TS set what the FPU holds need not be the running thread's, so that nothing can be compared there. But a thread
that leaves user mode is the one that entered it last on that CPU, and an exit to the place at which it left resumes it:
what it had in the FPU when TS was clear is known through all that follows, until TS is clear for it again. It must be
there then, if the thread put it there itself: a thread that never used the FPU may be given a fresh one. So it is with
the threads of a kernel that has no user mode; but such a thread may give way to another by a call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Flag, Kind, single
from gdbext.ledger.compare import Bools, is_user, keys
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.kernel_only import KernelOnly
from gdbext.rules.verdicts import simd_differences

CAPACITY: Final = 4096
"""Contexts remembered; beyond it the oldest is forgotten."""


@dataclass(frozen=True, slots=True)
class _Had:
    """seen: the event (a batch of one) that shows what a thread has in the FPU.  own: the thread loaded that itself.
    hidden: TS was set when it was interrupted last."""

    seen: Batch
    own: bool
    hidden: bool = False


class LazyFpuJudge:
    """Follows what each thread has in the FPU where CR0.TS hides it.

    alone: has been fed the batch before.
    """

    def __init__(self, alone: KernelOnly) -> None:
        self._lazy = False
        self._waiting: dict[int, _Had | None] = {}
        """By context; None: nothing is known, or more than one thread waits there."""
        self._running: dict[int, _Had] = {}
        """By CPU, what the thread in user mode has: seen at its return there, or before it, if TS was set then."""
        self._alone = alone
        self._with_users = False

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the returns to threads of a batch in order of ``seq``."""
        if "simd" not in batch.names:
            return []
        chosen, alone = _of_threads(batch), self._alone.rows
        judged = self._judge(batch.take(np.flatnonzero(chosen & alone)), True) if alone.any() else []
        users = chosen & ~alone & is_user(batch)
        if users.any() and not self._with_users:
            self._with_users = True
            self._waiting.clear()
            self._running.clear()
        return judged + self._judge(batch.take(np.flatnonzero(users)), False)

    def _judge(self, rows: Columns, alone: bool) -> list[Judged]:
        """Judge `rows`; `alone`: there is no user mode."""
        off = (rows["flags"] & Flag.FPU_OFF) != 0
        self._lazy = self._lazy or bool(off.any())
        if not self._lazy:
            return []
        judged: list[Judged] = []
        columns = (rows["kind"], rows["cpu"], keys(rows), off)
        for at, (kind, cpu, key, hidden) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            if kind in (Kind.SWITCH_OUT, Kind.SWITCH_IN):
                self._running.pop(cpu, None)
            elif kind == Kind.ENTRY:
                self._leaves(rows, at, cpu, key, hidden)
            else:
                judged += self._returns(rows, at, cpu, key, hidden, alone)
        return judged

    def _leaves(self, rows: Columns, at: int, cpu: int, key: int, hidden: bool) -> None:
        """User code is interrupted."""
        had = self._running.pop(cpu, None)
        if not hidden:
            row = single(rows.row(at), 0)
            had = _Had(row, had is not None and (had.own or bool(simd_differences(had.seen, row))))
        elif had is not None:
            # Set by the interrupt itself, which switched tasks in hardware, TS lies over what user code has changed.
            had = replace(had, hidden=True) if had.seen["kind"][0] == Kind.ENTRY else None
        self._waiting[key] = None if key in self._waiting else had
        if len(self._waiting) > CAPACITY:
            del self._waiting[next(iter(self._waiting))]

    def _returns(self, rows: Columns, at: int, cpu: int, key: int, hidden: bool, alone: bool) -> list[Judged]:
        """User code is resumed. (If TS was clear when it was interrupted, this is judged with its other registers, but
        for those of a kernel `alone`.)"""
        had = self._waiting.pop(key, None)
        self._running.pop(cpu, None)
        if hidden:
            if had is not None:
                self._running[cpu] = had
            return []
        row = single(rows.row(at), 0)
        self._running[cpu] = _Had(row, had is not None and had.own)
        if had is None or not had.own or not (had.hidden or alone):
            return []
        lost = simd_differences(had.seen, row)
        return [(_draft(had, lost), row, had.seen)] if lost else []


def _of_threads(batch: Columns) -> Bools:
    """Entries from and returns to a thread with SIMD state, and its switches to another one."""
    flags, kind = batch["flags"], batch["kind"]
    chosen: Bools = (kind == Kind.ENTRY) | (kind == Kind.EXIT)
    chosen &= (flags & (Flag.SIMD | Flag.UNREADABLE | Flag.SELF)) == Flag.SIMD
    chosen |= (kind == Kind.SWITCH_OUT) | (kind == Kind.SWITCH_IN)
    return chosen


def _draft(had: _Had, lost: tuple[Difference, ...]) -> Draft:
    cause = (
        f"the FPU is the thread's again (CR0.TS is clear), but {', '.join(d.field for d in lost)} are not what it had "
        f"there at event {int(had.seen['seq'][0])}, when it was the thread's last"
    )
    look = "the #NM handler: whose registers it saves, whose it loads, and who it takes for their owner"
    if not had.hidden:
        look = "whether every switch to a thread that does not own the FPU sets CR0.TS; then " + look
    return Draft("CW105", cause, look, lost, match="thread")
