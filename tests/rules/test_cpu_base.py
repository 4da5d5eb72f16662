"""GS bases that are the CPU's own, and those that are a thread's."""

from __future__ import annotations

import numpy as np
import pytest

from gdbext.arch.registers import MSR_GS_BASE
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Kind, empty
from gdbext.rules.cpu_base import CpuBases


def rows(*events: tuple[int, int, int]) -> Batch:
    """Kind, CPU and value (of a written base) of each event; contexts are user code's."""
    batch = empty(len(events))
    batch["seq"] = np.arange(1, len(events) + 1)
    batch["mode"], batch["cs"] = 64, 0x23
    for at, (kind, cpu, value) in enumerate(events):
        batch["kind"][at], batch["cpu"][at], batch["value"][at] = kind, cpu, value
        batch["addr"][at] = MSR_GS_BASE if kind == Kind.BASE else 0
    return batch


BOOT = ((Kind.BASE, 0, 0x1000), (Kind.BASE, 1, 0x2000), (Kind.EXIT, 0, 0), (Kind.EXIT, 1, 0))


@pytest.mark.parametrize("cut", range(6))
def test_written_before_user_code_and_never_since(cut: int) -> None:
    batch = rows(*BOOT, (Kind.ENTRY, 0, 0))
    bases = CpuBases()
    for part in (batch[:cut], batch[cut:]):
        bases.feed(Columns(part))
    assert bases.owns(0, 0x1000, 5)
    assert bases.owns(1, 0x2000, 5)
    assert not bases.owns(1, 0x1000, 5)
    assert not bases.owns(2, 0, 5)


@pytest.mark.parametrize("cut", range(7))
@pytest.mark.parametrize("later", [(Kind.BASE, 1, 0x2000), (Kind.SWAPGS, 1, 0)])
def test_a_base_that_is_written_or_swapped_later_is_a_threads(later: tuple[int, int, int], cut: int) -> None:
    batch = rows(*BOOT, later, (Kind.EXIT, 1, 0))
    bases = CpuBases()
    for part in (batch[:cut], batch[cut:]):
        bases.feed(Columns(part))
    assert not bases.owns(1, 0x2000, 6)
    assert bases.owns(1, 0x2000, 4)
    assert bases.owns(0, 0x1000, 6) == (later[0] == Kind.BASE)
