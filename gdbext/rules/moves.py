"""System calls by which their caller moves to another address space: its next instruction runs under other page tables.

A hypervisor's guest kernel switches its processes so, and whatever else is given its page tables by a kernel below it.
Such a call has returned, although nobody returns to where it was made; what waits where it goes to is older.
"""

from __future__ import annotations

from typing import Final

from gdbext.events.row import Batch, Kind
from gdbext.ledger.compare import Law, differences, is_call, is_user, space
from gdbext.rules.history import History

_NEAR: Final = 64
"""No more events lie between the write of CR3 and the return."""


def moving_call(row: Batch, history: History, law: Law) -> Batch | None:
    """The call that the exit `row` to user code ends under other page tables, or None (both batches of one).

    It is the last that this CPU did for user code, the page tables were changed since, and all else is as it was.
    """
    cpu, event = int(row["cpu"][0]), int(row["seq"][0])
    if event - history.last_switch(cpu, event) > _NEAR:
        return None
    past = history.before(event)
    past = past[past["cpu"] == cpu]
    crossings = past[((past["kind"] == Kind.ENTRY) | (past["kind"] == Kind.EXIT)) & is_user(past)]
    call = crossings[-1:]
    if not len(call) or call["kind"][0] != Kind.ENTRY or not is_call(call)[0] or (space(call) == space(row))[0]:
        return None
    loads = past[(past["kind"] == Kind.CR3) & (past["seq"] > call["seq"])]
    same = call["rip"] == row["rip"] and call["rsp"] == row["rsp"]
    return call if len(loads) and same and not differences(call, row, law)[0] else None
