"""A fast system call that returns where it was made, on another stack (CW106).

``syscall`` and ``sysenter`` save no stack pointer: the kernel returns on one that it has loaded from wherever it kept
the caller's, by ``sysret``, ``sysexit`` or ``iret``. A wrong one makes the return look like the first run of a thread,
which begins behind its maker's call on a stack of its own. But that thread runs only after a switch to it: a CPU that
has not switched since a call returns from that call.
"""

from __future__ import annotations

from typing import Final

from gdbext.arch.registers import GPR64
from gdbext.events.row import Batch
from gdbext.ledger.compare import BIT, Law, by_call, differences
from gdbext.ledger.pending import UNLIKE
from gdbext.rules.fastcalls import INT_BYTES, PAGE_OFFSET, FastCalls, is_fast
from gdbext.rules.history import History

_OTHERS: Final = sum(int(BIT[name]) for name in GPR64 if name != "rsp")
"""The general registers besides RSP."""


def call_on_another_stack(
    row: Batch, call: Batch, history: History, fast: FastCalls, law: Law
) -> tuple[Batch, int] | None:
    """The fast call that `row`, an exit to user code (a batch of one), ends with another RSP, and what differs (mask).

    call: the last context of its thread that waits (a batch of one, or empty).
    """
    if not len(call) or not by_call(call)[0]:
        return None
    if call["rsp"][0] == row["rsp"][0] or not _returns(call, row) or switched_since(call, row, history):
        return None
    landed = row.copy()
    landed["rip"] = call["rip"]
    mask = int(differences(call, landed, law)[0]) & ~fast.may_change(call)
    return (call, mask) if (mask & _OTHERS).bit_count() <= UNLIKE else None


def _returns(call: Batch, row: Batch) -> bool:
    """True if `row` goes to where `call` returns to: behind it, or behind the ``int n`` that follows."""
    if not is_fast(call)[0]:
        return bool(call["rip"][0] == row["rip"][0])
    ahead = (int(row["rip"][0]) - int(call["rip"][0])) & int(PAGE_OFFSET)
    return ahead in (0, INT_BYTES)


def switched_since(call: Batch, row: Batch, history: History) -> bool:
    """True unless the CPU of `row` made `call` and has not switched since, as it was seen to do before."""
    last = history.last_switch(int(row["cpu"][0]), int(row["seq"][0]))
    return bool(call["cpu"][0] != row["cpu"][0] or not last or last > int(call["seq"][0]))
