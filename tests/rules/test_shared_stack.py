"""CW404: a CPU takes up a thread that another one still runs."""

from __future__ import annotations

import numpy as np
import pytest

from gdbext.events.row import ROW, ROW_SIMD, Batch
from gdbext.rules.engine import Engine
from tests.rules.judged import judged
from tests.rules.rows import Kind, batch, context, entry, exit_, stamp

STACK = 0xFFFF_8000_0010_0F00
OTHER = 0xFFFF_8000_0020_0F00


def found(*rows: Batch) -> list[tuple[str, int]]:
    """The codes found and their events."""
    return [(finding.code, finding.event) for finding in judged(*rows)]


def switch(kind: int, cpu: int, rsp: int = STACK) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["mode"], row["cpu"], row["rsp"] = kind, 64, cpu, rsp
    return row


def takes_up(cpu: int, rsp: int = STACK) -> Batch:
    return switch(Kind.SWITCH_IN, cpu, rsp)


def leaves(cpu: int, rsp: int = STACK) -> Batch:
    return switch(Kind.SWITCH_OUT, cpu, rsp)


def interrupted(cpu: int, rsp: int) -> Batch:
    return entry(context(user=False, rsp=rsp), cpu=cpu)


def died() -> Batch:
    row = np.zeros(1, ROW)
    row["kind"] = Kind.DIED
    return row


@pytest.mark.parametrize(
    "goes_on",
    [leaves(1), leaves(1, STACK - 0x60), interrupted(1, STACK + 0x20)],
    ids=["leaves it", "leaves it deeper down", "is interrupted on it"],
)
def test_a_thread_that_two_cpus_run(goes_on: Batch) -> None:
    assert found(leaves(0), takes_up(1), leaves(0, OTHER), takes_up(0), goes_on) == [("CW404", 4)]


def test_rows_with_simd_state() -> None:
    rows = stamp(batch(leaves(0), takes_up(1), leaves(0, OTHER), takes_up(0), leaves(1)))
    wide = np.zeros(len(rows), ROW_SIMD)
    for name in ROW.names or ():
        wide[name] = rows[name]
    engine = Engine()
    engine.feed(wide[:3])
    assert [finding.code for finding in engine.feed(wide[3:])] == ["CW404"]


def test_the_machine_dies_of_it() -> None:
    events = [code for code, _ in found(leaves(0), takes_up(1), takes_up(0), died())]
    assert events == ["CW404", "CW901"]


@pytest.mark.parametrize("depth", [0, 0x60], ids=["as it came", "from deeper down"])
def test_a_thread_that_moves(depth: int) -> None:
    """It leaves the first CPU and is taken up where it was before, by the other one."""
    assert found(leaves(0), takes_up(1), leaves(1, STACK - depth), takes_up(0), leaves(1, OTHER)) == []


def test_a_thread_whose_end_was_not_seen() -> None:
    """The first CPU is seen on another stack next: it had left this one, which is a new thread's."""
    assert found(leaves(0), takes_up(1), takes_up(0), leaves(1, OTHER), died())[:-1] == []


def test_nothing_is_said_before_the_first_cpu_is_seen_there() -> None:
    assert found(leaves(0), takes_up(1), takes_up(0), interrupted(0, STACK)) == []


def test_a_thread_that_an_iret_leaves_and_a_switch_takes_up_again() -> None:
    """The first CPU was interrupted on the stack, went on with a program, and later comes back."""
    user = entry(context(rsp=0x7000), cpu=1)
    assert found(takes_up(1), interrupted(1, STACK + 8), takes_up(0), user, takes_up(1)) == []


@pytest.mark.parametrize("to", [OTHER, STACK + 8], ids=["elsewhere", "back"])
def test_a_thread_that_one_iret_leaves_and_another_takes_up_again(to: int) -> None:
    iret = exit_(context(user=False, rsp=to) | {"rip": 0x1234, "rbx": 1, "rbp": 2, "r12": 3, "r13": 4}, cpu=1)
    codes = found(takes_up(1), interrupted(1, STACK), takes_up(0), iret, interrupted(1, STACK + 8))
    assert "CW404" not in dict(codes)
