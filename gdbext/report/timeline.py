"""What each vCPU did when: handlers as nested slices, which GS base was active, and the windows; for pictures.

Built in one pass over the batches of a session, with memory for the handlers that are open.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Flag, Kind
from gdbext.ledger.compare import is_user
from gdbext.rules.parity import KERNEL, UNKNOWN, USER, Parity, ParityCount

RESUMED: Final = -1
"""``vector`` of a slice that is not a handler's: kernel code resumed on a CPU on which it was not interrupted."""
_TOLD: Final = (Kind.AREA, Kind.SLOT, Kind.DIED)
"""Rows that say something of the guest and happened on no CPU."""
_DEEP: Final = 64
"""Handlers open on one CPU at most; a guest that never returns nests for ever."""


class Slice(NamedTuple):
    """A handler's time on a CPU, in nanoseconds of the host's clock.

    depth: handlers below it.  event: its entry.  until: the exit that resumes what it interrupted, 0 where it was left
    another way (a thread switch, a signal).  rip: the interrupted place (guest virtual).
    """

    cpu: int
    depth: int
    start: int
    end: int
    vector: int
    event: int
    until: int
    rip: int


class Stretch(NamedTuple):
    """A stretch of a CPU's time in one state, in nanoseconds of the host's clock."""

    cpu: int
    start: int
    end: int
    state: int


class _Open(NamedTuple):
    start: int
    vector: int
    event: int
    rip: int
    rsp: int


class Timeline:
    """Turns batches into slices, GS stretches (``state``: parity) and window stretches (kernel code on the user's GS).

    Each feed returns what ended in it; :meth:`finish` what was still open.
    """

    def __init__(self) -> None:
        self._open: dict[int, list[_Open]] = {}
        self._parity = ParityCount()
        self._gs: dict[int, Stretch] = {}
        self._swaps = False

    def feed(self, batch: Batch) -> tuple[list[Slice], list[Stretch], list[Stretch]]:
        """The handlers, GS stretches and windows that end in `batch`."""
        columns = Columns(batch)
        parity = self._parity.count(columns)
        return self._slices(columns), *self._stretches(columns, parity)

    def finish(self) -> tuple[list[Slice], list[Stretch], list[Stretch]]:
        """What was open at the last event of each CPU."""
        slices: list[Slice] = []
        for cpu, stack in self._open.items():
            slices += self._close(cpu, stack, 0, self._gs[cpu].end)
        return slices, list(self._gs.values()), []

    def _slices(self, batch: Columns) -> list[Slice]:
        kind = batch["kind"]
        chosen = ((kind == Kind.ENTRY) | (kind == Kind.EXIT)) & ((batch["flags"] & Flag.SELF) == 0)
        rows = batch.take(np.flatnonzero(chosen))
        names = ("cpu", "time", "seq", "vector", "rip", "rsp")
        values = [rows[name].tolist() for name in names]
        done: list[Slice] = []
        entry, user = (rows["kind"] == Kind.ENTRY).tolist(), is_user(rows).tolist()
        for is_entry, to_user, cpu, time, seq, vector, rip, rsp in zip(entry, user, *values, strict=True):
            stack = self._open.setdefault(cpu, [])
            if is_entry:
                if (to_user and stack) or len(stack) >= _DEEP:
                    done += self._close(cpu, stack, 0, time)
                stack.append(_Open(time, vector, seq, rip, rsp))
            else:
                done += self._leave(cpu, stack, time, seq, rip, rsp, to_user)
        return done

    def _leave(
        self, cpu: int, stack: list[_Open], time: int, seq: int, rip: int, rsp: int, to_user: bool
    ) -> list[Slice]:
        """An exit: it ends the handler whose interrupted context it resumes and all above, or all there are."""
        for at in range(len(stack) - 1, -1, -1):
            if stack[at].rsp == rsp and stack[at].rip == rip:
                above = self._close(cpu, stack, at + 1, time)
                return [*above, *self._close(cpu, stack, at, time, seq)]
        done = self._close(cpu, stack, 0, time)
        if not to_user:
            stack.append(_Open(time, RESUMED, seq, rip, rsp))
        return done

    @staticmethod
    def _close(cpu: int, stack: list[_Open], depth: int, time: int, until: int = 0) -> list[Slice]:
        done = [
            Slice(cpu, at, stack[at].start, time, stack[at].vector, stack[at].event, until, stack[at].rip)
            for at in range(len(stack) - 1, depth - 1, -1)
        ]
        del stack[depth:]
        return done

    def _stretches(self, batch: Columns, parity: Parity) -> tuple[list[Stretch], list[Stretch]]:
        """The time before each event belongs to the parity found at it."""
        done: list[Stretch] = []
        windows: list[Stretch] = []
        self._swaps = self._swaps or bool((batch["kind"] == Kind.SWAPGS).any())
        kind = batch["kind"]
        happened = ~np.isin(kind, _TOLD)
        ran_user = np.where(kind == Kind.ENTRY, is_user(batch), batch["cpl"] == 3)
        for cpu in np.unique(batch["cpu"][happened]).tolist():
            mine = np.flatnonzero((batch["cpu"] == cpu) & happened)
            time, state = batch["time"][mine], parity[mine]
            current = self._gs.get(cpu) or Stretch(cpu, int(time[0]), int(time[0]), int(state[0]))
            since = np.concatenate((np.array([current.end], time.dtype), time[:-1]))
            changes = np.flatnonzero(state != np.concatenate((np.array([current.state], state.dtype), state[:-1])))
            for at in changes.tolist():
                done.append(current._replace(end=int(since[at])))
                current = Stretch(cpu, int(since[at]), 0, int(state[at]))
            self._gs[cpu] = current._replace(end=int(time[-1]))
            exposed = (state == USER) & ~ran_user[mine] & (time > since)
            if self._swaps:
                pairs = zip(since[exposed].tolist(), time[exposed].tolist(), strict=True)
                windows += [Stretch(cpu, start, end, USER) for start, end in pairs]
        return done, windows


__all__ = ["KERNEL", "RESUMED", "UNKNOWN", "USER", "Slice", "Stretch", "Timeline"]
