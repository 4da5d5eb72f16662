"""System calls by which their caller moves to another address space: its next instruction runs under other page tables.

A hypervisor's guest kernel switches its processes so, and whatever else is given its page tables by a kernel below it.
Such a call has returned, although nobody returns to where it was made; what waits where it goes to is older.
"""

from __future__ import annotations

import numpy as np

from gdbext.events.columns import Columns, Indices
from gdbext.events.row import Batch, Kind
from gdbext.ledger.compare import Bools, Law, differences, is_call, is_user, space
from gdbext.rules.history import History


def may_end_one(batch: Columns, places: Indices, history: History) -> Bools:
    """False for those at `places` among the contexts `batch` at hand that :func:`moving_call` knows no call for."""
    rows = batch.take(places)
    may: Bools = (rows["kind"] == Kind.EXIT) & is_user(rows)
    exits = np.flatnonzero(may)
    for cpu in np.unique(rows["cpu"][exits]).tolist():
        mine = exits[rows["cpu"][exits] == cpu]
        last = history.crossings_before(cpu, places[mine])
        known = np.maximum(last, 0)  # a place in any case: it is read before the answer is known not to matter
        same = (batch.at("rip", known) == rows["rip"][mine]) & (batch.at("rsp", known) == rows["rsp"][mine])
        may[mine] = (last < 0) | (same & (batch.at("kind", known) == Kind.ENTRY))
    return may


def moving_call(row: Batch, history: History, law: Law) -> Batch | None:
    """The call that the exit `row` to user code ends under other page tables, or None (both batches of one).

    It is the last that this CPU did for user code, the CPU has not turned to another stack since, as it does to run a
    fork's child, and all else is as it was.
    """
    cpu, event = int(row["cpu"][0]), int(row["seq"][0])
    call = history.last_crossing(cpu, event)
    if not len(call) or call["kind"][0] != Kind.ENTRY or not is_call(call)[0] or (space(call) == space(row))[0]:
        return None
    same = call["rip"][0] == row["rip"][0] and call["rsp"][0] == row["rsp"][0]
    if not same or history.last_turn(cpu, event) > int(call["seq"][0]) or differences(call, row, law)[0]:
        return None
    return call
