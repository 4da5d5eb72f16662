"""The machine died: CW901 with the last events."""

from __future__ import annotations

import numpy as np

from gdbext.arch import vectors
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Kind
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.history import History

SHOWN = 8
"""Events named in the cause."""


def judge(batch: Columns, history: History) -> list[Judged]:
    """One draft per row that says the machine died."""
    judged: list[Judged] = []
    for index in np.flatnonzero(batch["kind"] == Kind.DIED):
        row = batch.row(int(index))
        last = history.before(int(row["seq"][0]))
        last = last[(last["kind"] == Kind.ENTRY) | (last["kind"] == Kind.EXIT)][-SHOWN:]
        entries = last[last["kind"] == Kind.ENTRY]
        cause = "triple fault or reset"
        if len(last):
            cause += "; the last events: " + ", ".join(_say(last[i : i + 1]) for i in range(len(last)))
        look = "the first exception of the last events: what raised it, and why its handler could not run"
        judged.append((Draft("CW901", cause, look), row, entries[-1:] if len(entries) else None))
    return judged


def _say(row: Batch) -> str:
    seq, rip = int(row["seq"][0]), int(row["rip"][0])
    if row["kind"][0] == Kind.ENTRY:
        return f"{seq} {vectors.name(int(row['vector'][0]))} at {rip:#x}"
    return f"{seq} return to {rip:#x}"
