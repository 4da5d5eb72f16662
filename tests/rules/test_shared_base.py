"""CW205: one kernel GS base on two CPUs at a time, and the write to blame."""

from __future__ import annotations

import pytest

from gdbext.arch.registers import MSR_GS_BASE, MSR_KERNEL_GS_BASE
from gdbext.events.row import Batch
from gdbext.rules.finding import Finding
from tests.rules.judged import judged
from tests.rules.rows import KERNEL_BASE, How, Kind, context, entry, exit_
from tests.rules.test_gs import _event, swap

OTHER = KERNEL_BASE + 0x1000


def crosses(cpu: int, base: int, thread: int) -> list[Batch]:
    """A thread of user code is interrupted on a CPU whose kernel base is `base`."""
    ctx = context(thread, kernel_gs_base=base)
    rows = [entry(ctx), swap(), swap(pc=0xFFFFFFFF80001880), exit_(ctx)]
    for row in rows:
        row["cpu"] = cpu
    return rows


def writes(cpu: int, base: int, msr: int = MSR_GS_BASE) -> Batch:
    return _event(Kind.BASE, how=How.WRMSR, addr=msr, value=base, cpu=cpu, pc=0xFFFFFFFF80001999)


START = [writes(0, KERNEL_BASE), writes(1, OTHER), *crosses(0, KERNEL_BASE, 1), *crosses(1, OTHER, 2)]


def found_behind_start(*rows: Batch) -> list[Finding]:
    """What is found in the rows behind START."""
    return judged(*START, *rows)


@pytest.mark.parametrize("guilty", [0, 1])
def test_the_write_that_brought_the_base_is_blamed(guilty: int) -> None:
    base = (KERNEL_BASE, OTHER)[1 - guilty]
    (found,) = found_behind_start(writes(guilty, base), *crosses(guilty, base, 3), *crosses(1 - guilty, base, 4))
    assert (found.code, found.cpu, found.event) == ("CW205", guilty, len(START) + 1)
    assert found.pc == 0xFFFFFFFF80001999
    assert f"which is CPU {1 - guilty}'s" in found.cause


def test_the_first_of_several_writes_is_blamed() -> None:
    """The other CPU stands still meanwhile, as a virtual one may."""
    again = [*crosses(0, OTHER, 3), writes(0, KERNEL_BASE), *crosses(0, KERNEL_BASE, 1), writes(0, OTHER)]
    (found,) = found_behind_start(writes(0, OTHER), *again, *crosses(0, OTHER, 3), *crosses(1, OTHER, 4))
    assert found.event == len(START) + 1


def test_a_base_that_wanders_with_its_thread() -> None:
    moved = [
        writes(0, 0x7000, MSR_KERNEL_GS_BASE),
        writes(0, OTHER),
        *crosses(1, KERNEL_BASE, 4),
        *crosses(0, OTHER, 3),
    ]
    assert found_behind_start(writes(1, KERNEL_BASE), *moved) == []


def test_a_thread_let_go_just_before_the_base_of_the_next_one_is_loaded() -> None:
    early = writes(1, KERNEL_BASE), *crosses(1, KERNEL_BASE, 4), writes(0, OTHER), *crosses(0, OTHER, 3)
    assert found_behind_start(*early) == []


def starts(cpu: int, base: int, thread: int) -> list[Batch]:
    """A CPU loads its base, is interrupted in the kernel, and goes to user mode for the first time."""
    rows = [writes(cpu, base), writes(cpu, 0, MSR_KERNEL_GS_BASE)]
    rows += [entry(context(9, user=False, gs_base=base, kernel_gs_base=0)), swap()]
    rows += [exit_(context(thread, kernel_gs_base=base))]
    for row in rows:
        row["cpu"] = cpu
    return rows


def test_the_machine_dies_before_either_cpu_comes_back_from_user_mode() -> None:
    shared = [*starts(2, OTHER + 0x1000, 5), *starts(3, OTHER + 0x1000, 6), _event(Kind.DIED)]
    found = found_behind_start(*shared)
    assert [(f.code, f.cpu, f.event) for f in found] == [
        ("CW205", 3, len(START) + 6),
        ("CW901", 0, len(START) + len(shared)),
    ]


def test_the_machine_dies_of_something_else() -> None:
    own = [*starts(2, OTHER + 0x1000, 5), *starts(3, OTHER + 0x2000, 6), _event(Kind.DIED)]
    assert [f.code for f in found_behind_start(*own)] == ["CW901"]


def test_another_kernel_s_base_may_be_anything_until_it_runs_user_code() -> None:
    """kexec: a CPU that ran user code loads other interrupt tables, and faults with no base before it sets its own."""

    def faults(cpu: int) -> Batch:
        return entry(context(9, user=False, gs_base=0, kernel_gs_base=0), How.EXCEPTION, cpu=cpu)

    tables = _event(Kind.IDT, addr=0x1000, value=0xFFF, cpu=0), _event(Kind.IDT, addr=0x2000, value=0xFFF, cpu=0)
    before = crosses(0, KERNEL_BASE, 1)[:2]
    assert found_behind_start(*before, *tables, faults(0), faults(0)) == []
    assert [f.code for f in found_behind_start(*before, faults(0))] == ["CW205"]
    again = *crosses(0, KERNEL_BASE, 1)[2:], *crosses(0, KERNEL_BASE, 3)[:2], faults(0)
    assert [f.code for f in found_behind_start(*before, *tables, *again)] == ["CW205"]
