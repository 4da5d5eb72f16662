"""What is kept of the GS bases: their loaders through swaps, the last swap, the last transitions, however batches are
cut."""

from __future__ import annotations

import numpy as np
import pytest

from gdbext.arch.registers import MSR_GS_BASE, MSR_KERNEL_GS_BASE, MSR_LSTAR
from gdbext.events.row import ROW, Batch
from gdbext.rules import gslog
from gdbext.rules.gslog import GsLog
from gdbext.rules.parity import KERNEL, UNKNOWN, USER
from tests.rules.rows import KERNEL_BASE, KERNEL_RIP, Flag, How, Kind, batch, context, entry, exit_, stamp

USERS = 0x7000


def event(kind: int, active: int, inactive: int, **fields: object) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["mode"], row["pc"] = kind, 64, KERNEL_RIP + 0x700
    row["gs_base"], row["kernel_gs_base"] = active, inactive
    for name, value in fields.items():
        row[name] = value
    return row


def load(msr: int, value: int, active: int, inactive: int, how: int = How.WRMSR) -> Batch:
    return event(Kind.BASE, active, inactive, addr=msr, value=value, how=how)


def run() -> Batch:
    """Entered from user code, both bases loaded in the kernel, and back: events 1 to 7."""
    ctx = context(1)
    return stamp(batch(
        entry(ctx),
        event(Kind.SWAPGS, USERS, 0x1),
        load(MSR_GS_BASE, KERNEL_BASE, 0x1, USERS),
        load(MSR_KERNEL_GS_BASE, 0x9000, KERNEL_BASE, USERS, How.WRBASE),
        load(MSR_LSTAR, 0x1234, KERNEL_BASE, 0x9000),
        event(Kind.SWAPGS, KERNEL_BASE, 0x9000, pc=KERNEL_RIP + 0x880),
        exit_(ctx, gs_base=0x9000, kernel_gs_base=KERNEL_BASE),
    ))  # fmt: skip


@pytest.fixture(params=[1, 2, 3, 100])
def log(request: pytest.FixtureRequest) -> GsLog:
    rows, log = run(), GsLog()
    for start in range(0, len(rows), request.param):
        log.put(rows[start : start + request.param])
    return log


def test_each_base_knows_its_loader_through_the_swaps(log: GsLog) -> None:
    state = log.state(0)
    assert state is not None
    assert (state.parity, log.parity(0), log.cpus()) == (USER, False, [0])
    assert (state.active.value, state.inactive.value) == (0x9000, KERNEL_BASE)
    assert state.active.load is not None
    assert state.inactive.load is not None
    assert (state.active.load.event, state.active.load.how) == (4, "wrgsbase")
    assert (state.inactive.load.event, state.inactive.load.how) == (3, "wrmsr")
    assert state.swap == gslog.Swap(6, KERNEL_RIP + 0x880)


def test_transitions_are_the_last_ones_with_their_parity(log: GsLog) -> None:
    moves = [(one.event, one.before, one.after) for one in log.transitions(100)]
    assert moves == [
        (1, USER, USER),
        (2, USER, KERNEL),
        (3, KERNEL, KERNEL),
        (4, KERNEL, KERNEL),
        (6, KERNEL, USER),
        (7, USER, USER),
    ]
    assert [one.event for one in log.transitions(2)] == [6, 7]
    assert log.transitions(0) == []
    assert log.transitions(5, cpu=1) == []
    assert log.transitions(3)[0].what == f"KERNEL_GS_BASE = {0x9000:#x} by wrgsbase"


def test_a_base_that_changed_unseen_has_no_loader(log: GsLog) -> None:
    late = entry(context(1), gs_base=0xAAAA, kernel_gs_base=KERNEL_BASE)
    late["seq"] = 8
    log.put(late)
    state = log.state(0)
    assert state is not None
    assert (state.active.value, state.active.load) == (0xAAAA, None)
    assert state.inactive.load is not None
    assert "loaded before the watch or by a selector" in gslog.describe(state, hex)[0]


def test_nothing_is_guessed_before_cpl_3_was_seen() -> None:
    log = GsLog()
    log.put(stamp(event(Kind.SWAPGS, KERNEL_BASE, USERS, flags=Flag.NO_KERNEL_GS)))
    state = log.state(0)
    assert state is not None
    assert (state.parity, log.parity(0)) == (UNKNOWN, None)
    assert (state.active.value, state.inactive.value) == (None, KERNEL_BASE)
    assert log.state(1) is None
    (one,) = log.transitions(5)
    assert (one.before, one.after) == (UNKNOWN, UNKNOWN)


def test_only_the_latest_transitions_are_kept() -> None:
    log = GsLog()
    rows = stamp(np.concatenate([run()] * 200))
    for start in range(0, len(rows), 50):
        log.put(rows[start : start + 50])
    kept = log.transitions(10_000)
    assert gslog.KEPT <= len(kept) <= 2 * gslog.KEPT
    assert kept[-1].event == len(rows)
