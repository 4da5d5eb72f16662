"""Two CPUs that are entered from user mode on one stack: CW303.

While user code runs on a CPU nothing moves the place where its next entry will land (RSP0, ESP0, an IST stack), so that
this entry shows where that was all the while. Another CPU that was entered there meanwhile had the same stack at the
same time: whichever comes second overwrites the frame of the first. Only within one address space, or where memory is
known to be the same in all (:mod:`gdbext.rules.common_memory`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gdbext.events.columns import Array, Columns, Indices, by_cpu, together
from gdbext.events.row import Batch, Flag, Kind
from gdbext.ledger.compare import contexts, is_user, mixed
from gdbext.rules.common_memory import CommonMemory
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference


class SharedLandingJudge:
    """Knows for each CPU since when user code runs, and the last entry at each address since then."""

    def __init__(self, common: CommonMemory) -> None:
        self._common = common
        self._user_since: dict[int, int] = {}
        """By CPU the event by which it returned to user code, 0 where it is not there."""
        self._landed: tuple[Array, Array, Array] = (np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, "<u2"))
        """The last entry from user code at each place: place, event, CPU."""
        self._told: set[int] = set()
        """Addresses that were told."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the entries from user code of a batch in order of ``seq``; one CPU alone shares with nobody."""
        rows = contexts(batch)
        if not len(rows):
            return []
        since = self._since(rows)
        if len(self._user_since) < 2:
            return []
        lands = (rows["kind"] == Kind.ENTRY) & is_user(rows) & (rows["frame"] != 0)
        positions = np.flatnonzero(lands & ((rows["flags"] & Flag.UNREADABLE) == 0))
        if not len(positions):
            return []
        its = rows.take(positions)
        shared = self._shared(mixed(its["frame"], self._common.spaces(its), np.uint64(0)), its, since[positions])
        return [judged for at, event, cpu in shared for judged in self._tell(its.row(at), event, cpu)]

    def _since(self, rows: Columns) -> npt.NDArray[np.uint64]:
        """For each of `rows` the event by which its CPU had returned to user code just before, 0: it had not."""
        since = np.zeros(len(rows), np.uint64)
        for cpu, (mine, its) in by_cpu(rows).items():
            returned = np.where((its["kind"] == Kind.EXIT) & is_user(its), its["seq"], np.uint64(0))
            since[mine[1:]] = returned[:-1]
            since[mine[0]] = self._user_since.get(cpu, 0)
            self._user_since[cpu] = int(returned[-1])
        since[(rows["flags"] & Flag.STALE) != 0] = 0
        return since

    def _shared(self, places: Array, its: Columns, since: Array) -> list[tuple[int, int, int]]:
        """Of the entries `its`, at `places`, those before which another CPU was entered at the same place `since` user
        code ran: position, and event and CPU of the other entry."""
        known = len(self._landed[0])
        every = tuple(np.concatenate(both) for both in zip(self._landed, (places, its["seq"], its["cpu"]), strict=True))
        order = together(every[0])
        place, event, cpu = (column.take(order) for column in every)
        same = place[1:] == place[:-1]
        begun = np.concatenate((np.zeros(known, np.uint64), since)).take(order)[1:]
        hits = same & (begun != 0) & (cpu[1:] != cpu[:-1]) & (event[:-1] > begun)
        self._keep(place, event, cpu, np.flatnonzero(np.append(~same, True)))
        found = np.flatnonzero(hits)
        return sorted(zip((order[found + 1] - known).tolist(), event[found].tolist(), cpu[found].tolist(), strict=True))

    def _keep(self, place: Array, event: Array, cpu: Array, last: Indices) -> None:
        """Of the `last` entries at each place only those matter that came after some CPU returned to user code."""
        oldest = min((since for since in self._user_since.values() if since), default=0)
        last = last[event[last] > oldest] if oldest else last[:0]
        self._landed = place[last], event[last], cpu[last]

    def _tell(self, row: Batch, event: int, cpu: int) -> list[Judged]:
        frame = int(row["frame"][0])
        if frame in self._told:
            return []
        self._told.add(frame)
        return [(_draft(row, event, cpu), row.copy(), None)]


def _draft(row: Batch, event: int, cpu: int) -> Draft:
    frame, mine = int(row["frame"][0]), int(row["cpu"][0])
    cause = (
        f"CPU {mine} was entered from user mode at {frame:#x}, where CPU {cpu} was entered at event {event} while user "
        f"code ran on CPU {mine}: both had one stack at the same time, and one overwrites the other's frame"
    )
    which = "the IST stacks" if row["flags"][0] & Flag.IST else "RSP0 (ESP0)"
    look = f"what sets {which} of each CPU's TSS: every CPU needs a TSS of its own, and no two the same stack"
    return Draft("CW303", cause, look, (Difference("frame", None, frame),))
