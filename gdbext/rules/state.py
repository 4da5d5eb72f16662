"""Soft state against hard state: a tracked variable that contradicts the privilege level (CW702).

(That a variable comes back as it was, CW701, is a field of the context: see :mod:`gdbext.ledger.compare`.)  An entry
from kernel code with interrupts enabled interrupted code whose own entry is finished: a kernel lets interrupts in
only after it has noted that it is in the kernel, and keeps them off from the moment it notes the opposite. An
exception that comes between the hardware's entry and the noting, with interrupts still off, is the known false
alarm, and shows nothing.
"""

from __future__ import annotations

import numpy as np

from gdbext.arch import flags as rf
from gdbext.events.columns import Columns
from gdbext.events.row import NOT_READ, Batch, Flag, Kind
from gdbext.ledger.compare import is_user
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.policy import Policy, Tracked


class StateJudge:
    """Checks the implications of a profile's tracked variables at every entry."""

    def __init__(self, policy: Policy) -> None:
        self._rules = [
            (slot, variable, must) for slot, variable in enumerate(policy.tracked) for must in variable.implications
        ]

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the entries of a batch."""
        judged: list[Judged] = []
        if not self._rules:
            return judged
        entries = (batch["kind"] == Kind.ENTRY) & ((batch["flags"] & Flag.UNREADABLE) == 0)
        user = is_user(batch)
        settled = user | ((batch["rflags"] & rf.IF) != 0)
        for slot, variable, must in self._rules:
            held = batch["tracked"][:, slot]
            value = held & np.uint64(variable.mask)
            broken = (value != np.uint64(must.value)) if must.equal else (value == np.uint64(must.value))
            broken &= held != np.uint64(NOT_READ)
            for index in np.flatnonzero(entries & settled & (user == must.in_user) & broken):
                row = batch.row(int(index))
                judged.append((_contradicts(row, variable, must.value, int(value[index]), must.equal), row, None))
        return judged


def _contradicts(row: Batch, variable: Tracked, value: int, actual: int, equal: bool) -> Draft:
    mode = "user" if bool(is_user(row)[0]) else "kernel"
    wanted = f"{'is not' if equal else 'is'} {value:#x}"
    cause = (
        f"{mode} code was interrupted at {int(row['rip'][0]):#x} while {variable.name} is {actual:#x}; "
        f"for {mode} code whose entry is finished it must not be so ({variable.name} {wanted})"
    )
    look = f"the path that entered {mode} code last on this CPU: where it should have set {variable.name}"
    return Draft("CW702", cause, look, (Difference(variable.name, value, actual),))
