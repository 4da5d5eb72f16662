"""Entries on stacks that must not be entered twice: CW304 (IST stack reused) and CW502 (NMI nested)."""

from __future__ import annotations

import numpy as np

from gdbext.arch import vectors
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Flag, Kind
from gdbext.ledger.compare import contexts, is_user
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.policy import Policy

FRAME_BYTES = 40
"""A hardware frame in 64-bit mode."""


STACK_BYTES = 4096
"""A handler whose stack pointer is further below its frame has left that stack."""


class NestingJudge:
    """Per CPU, the entries by NMI or on an IST stack whose frames are still live.

    A kernel may copy the frame from the IST stack and go on elsewhere: then the stack is free. It does so if the
    handler has left that stack and no frame was ever popped from there. One whose NMIs return to what they interrupted
    by a copy on the same stack is ready for the next NMI, whose frame comes over the first one's.
    """

    def __init__(self, policy: Policy) -> None:
        self._nested_nmi = policy.nested_nmi
        self._live: dict[int, list[Batch]] = {}
        self._popped_in_place: set[int] = set()
        self._copied_nmis: set[int] = set()
        """The handlers of NMIs that returned by a copy."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge a batch in order of ``seq``; only NMIs, IST entries and the exits behind them are looked at."""
        rows = contexts(batch)
        kind = rows["kind"]
        special = (kind == Kind.ENTRY) & (((rows["flags"] & Flag.IST) != 0) | (rows["vector"] == vectors.NMI))
        if not special.any() and not any(self._live.values()):
            return []
        judged: list[Judged] = []
        for index in np.flatnonzero(special | (kind == Kind.EXIT)):
            row = rows.row(int(index))
            cpu = int(row["cpu"][0])
            live = self._live.setdefault(cpu, [])
            if special[index]:
                judged += [(draft, row, None) for draft in self._judge(live, row)]
                live.append(row.copy())
                del live[:-8]
            elif live:
                self._popped_in_place |= {int(row["frame"][0])} & {int(old["frame"][0]) for old in live}
                self._returned(live, row)
        return judged

    def _returned(self, live: list[Batch], row: Batch) -> None:
        """An exit that resumes what an entry interrupted ends it and all above it; a return to user mode ends all."""
        if bool(is_user(row)[0]):
            live.clear()
            return
        for at in range(len(live) - 1, -1, -1):
            same_rsp, same_rip = live[at]["rsp"][0] == row["rsp"][0], live[at]["rip"][0] == row["rip"][0]
            if (
                same_rsp
                and same_rip
                and live[at]["vector"][0] == vectors.NMI
                and live[at]["frame"][0] != row["frame"][0]
            ):
                self._copied_nmis.add(int(live[at]["pc"][0]))
            if same_rsp or same_rip:
                del live[at:]
                return

    def _judge(self, live: list[Batch], row: Batch) -> list[Draft]:
        """An entry from user mode is no nesting: whatever was live on this CPU has been left for it."""
        if bool(is_user(row)[0]):
            live.clear()
            return []
        drafts = []
        nmis = [old for old in live if old["vector"][0] == vectors.NMI]
        if row["vector"][0] == vectors.NMI and nmis and (self._nested_nmi or int(row["pc"][0]) in self._copied_nmis):
            return []
        if row["vector"][0] == vectors.NMI and nmis:
            drafts.append(_nested(nmis[-1], row))
        over = [old for old in live if row["flags"][0] & Flag.IST and _overlap(old, row) and not self._free(old, row)]
        if over and not drafts:
            drafts.append(_reused(over[-1], row))
        return drafts

    def _free(self, old: Batch, row: Batch) -> bool:
        """True if the handler of `old`, which `row` interrupted, has copied its frame and left the stack."""
        frame = int(old["frame"][0])
        return frame not in self._popped_in_place and not 0 <= frame - int(row["rsp"][0]) < STACK_BYTES


def _overlap(old: Batch, row: Batch) -> bool:
    distance = int(old["frame"][0]) - int(row["frame"][0])
    started_over = int(row["rsp"][0]) < int(row["frame"][0]) or int(row["rsp"][0]) > int(old["frame"][0])
    return abs(distance) < FRAME_BYTES and (started_over or distance == 0)


def _nested(old: Batch, row: Batch) -> Draft:
    cause = (
        f"an NMI came at {int(row['rip'][0]):#x} before the one of event {int(old['seq'][0])} had returned: "
        "an iret inside the handler had let NMIs in again"
    )
    if _overlap(old, row):
        cause += f"; it was pushed over the first one's frame at {int(old['frame'][0]):#x}"
    look = "what in the NMI handler returns by iret before its end: a fault, a breakpoint, a debug exception"
    return Draft("CW502", cause, look, (Difference("frame", None, int(row["frame"][0])),))


def _reused(old: Batch, row: Batch) -> Draft:
    what, first = (vectors.name(int(r["vector"][0])) for r in (row, old))
    cause = (
        f"{what} entered the IST stack at {int(row['frame'][0]):#x} while the frame of {first} "
        f"(event {int(old['seq'][0])}) was live on it: that frame is gone"
    )
    look = "whether two vectors share an IST index, or the handler can raise its own vector"
    return Draft("CW304", cause, look, (Difference("frame", None, int(row["frame"][0])),))
