"""System calls by which their caller moves to another address space."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gdbext.events.row import ROW, Batch, Kind
from gdbext.recording.apart import Apart
from gdbext.rules.engine import Engine
from gdbext.rules.history import History
from gdbext.rules.moves import may_end_one
from tests.rules.rows import How, batch, context, entry, exit_, stamp

OLD, NEW = 0x100000, 0x200000


def load(cr3: int) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["mode"], row["value"] = Kind.CR3, 64, cr3
    return row


def move(turn: int, to: int, **changes: Any) -> list[Batch]:
    """The caller, whose RBX is `turn`, moves from one address space to the other."""
    ctx = context(rbx=turn)
    made = entry(ctx | {"cr3": OLD if to == NEW else NEW}, How.SYSCALL)
    return [made, load(to), exit_(ctx | {"cr3": to} | changes, How.SYSRET)]


def codes(*rows: Batch, cut: int) -> list[tuple[str, str | None]]:
    whole, engine = stamp(batch(*rows)), Engine()
    for start in range(0, len(whole), cut):
        engine.feed(whole[start : start + cut])
    return [(finding.code, finding.field) for finding in engine.findings]


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_a_call_may_move_its_caller(cut: int) -> None:
    """Back and forth, with other registers each time: what waits under the old page tables has returned long since."""
    rows = [row for turn in range(1, 9) for row in move(turn, NEW if turn % 2 else OLD)]
    assert codes(*rows, cut=cut) == []


def test_what_a_moved_caller_loses_is_told() -> None:
    waiting = entry(context(rbx=1, cr3=NEW), How.SYSCALL)
    assert codes(waiting, *move(1, NEW, r12=5), cut=100) == [("CW106", "r12")]


def test_another_threads_call_does_not_move_it() -> None:
    """The last call of this CPU is another's: the page tables are its own, the registers are not."""
    ctx = context(rbx=1)
    theirs = entry(ctx | {"cr3": NEW, "rbx": 2, "r12": 3}, How.SYSCALL)
    rows = entry(ctx | {"cr3": OLD}, How.SYSCALL), theirs, load(NEW), exit_(ctx | {"cr3": NEW}, How.SYSRET)
    assert codes(*rows, cut=100) == [("CW106", "rbx,r12")]


def test_a_forks_child_leaves_its_parents_call_to_it() -> None:
    """It resumes what the call interrupted, in its own address space, after the CPU turned to its stack."""
    ctx = context(rbx=1)
    turn = np.zeros(1, ROW)
    turn["kind"], turn["mode"] = Kind.SWITCH_OUT, 64
    made, child = entry(ctx | {"cr3": OLD}, How.SYSCALL), exit_(ctx | {"cr3": NEW, "rax": 0}, How.SYSRET)
    assert codes(made, turn, load(NEW), child, exit_(ctx | {"cr3": OLD, "r12": 5}, How.SYSRET), cut=100) == [
        ("CW106", "r12")
    ]


def test_a_first_exit_has_no_call_in_front_of_it_where_columns_lie_in_several_batches_either() -> None:
    """As in a recording: its columns are looked up where they lie."""
    rows = [exit_(context(1)), *(row for _ in range(100) for row in (entry(context(2)), exit_(context(2))))]
    whole = stamp(batch(*rows))
    halves = ({name: np.ascontiguousarray(half[name]) for name in ROW.names or ()} for half in (whole[:9], whole[9:]))
    columns, history = Apart(ROW, *halves), History()
    history.begin(columns)
    assert may_end_one(columns, np.array([0, 2]), history).tolist() == [True, True]
