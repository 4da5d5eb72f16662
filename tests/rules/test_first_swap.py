"""CW203 while nothing has run at CPL 3 yet."""

from __future__ import annotations

from typing import Any

import pytest

from gdbext.arch import vectors
from gdbext.events.row import Batch
from gdbext.rules.engine import Engine
from tests.rules.rows import KERNEL_BASE, KERNEL_RIP, How, Kind, batch, context, entry, exit_, stamp

SWAP = KERNEL_RIP + 0x600


def found(rows: list[Batch], cut: int = 99) -> list[tuple[str, str | None]]:
    every, engine = stamp(batch(*rows)), Engine()
    for at in range(0, len(every), cut):
        engine.feed(every[at : at + cut])
    return [(finding.code, finding.field) for finding in engine.findings]


def swapped(**changes: Any) -> list[Batch]:
    """The first interrupt of kernel code: its handler swaps, and faults behind."""
    ctx = context(user=False, kernel_gs_base=0)
    first = entry(ctx, frame=ctx["rsp"] - 40)
    swap = entry(ctx, pc=SWAP, rip=SWAP)
    swap["kind"], swap["how"], swap["vector"] = Kind.SWAPGS, 0, 0
    inside = ctx | {"gs_base": 0, "kernel_gs_base": KERNEL_BASE, "rip": SWAP + 0x40, "rsp": ctx["rsp"] - 200}
    what = {"cr2": changes.get("cr2", 0x1AB90), "vector": changes.get("vector", vectors.PF)}
    return [first, swap, entry(inside | changes, How.EXCEPTION, **what)]


@pytest.mark.parametrize("cut", [1, 2, 99])
def test_the_first_swap_takes_the_kernel_s_base_from_its_own_code(cut: int) -> None:
    assert found(swapped(), cut) == [("CW203", "gs_base")]


def test_memory_at_address_zero_is_no_base_either() -> None:
    """What is read there is no pointer: #GP, CR2 as it was."""
    assert found(swapped(vector=vectors.GP, cr2=KERNEL_BASE)) == [("CW203", "gs_base")]


@pytest.mark.parametrize(
    "changes",
    [
        {"rip": SWAP + 3},
        {"cr2": KERNEL_BASE},
        {"rsp": context(user=False)["rsp"] + 0x100},
        {"gs_base": KERNEL_BASE, "kernel_gs_base": 0},
        {"rip": 0x100000},
    ],
    ids=["selector load", "kernel's address", "not its handler", "swapped back", "no kernel half"],
)
def test_what_may_be(changes: dict[str, int]) -> None:
    assert found(swapped(**changes)) == []


def test_a_kernel_that_swaps_at_every_entry_has_its_way() -> None:
    first, swap, fault = swapped()
    assert found([first, swap, swap.copy(), exit_(context(user=False, kernel_gs_base=0))]) == []
    assert found([swap.copy(), first, swap, fault]) == []  # it had swapped before


def returned(**changes: Any) -> list[Batch]:
    """The first interrupt of kernel code: its handler swaps and returns."""
    first, swap, _ = swapped()
    ctx = context(user=False, kernel_gs_base=0)
    return [first, swap, exit_(ctx | {"gs_base": 0, "kernel_gs_base": KERNEL_BASE} | changes)]


@pytest.mark.parametrize("cut", [1, 2, 99])
def test_the_first_swap_is_on_the_way_back_to_kernel_code(cut: int) -> None:
    assert found(returned(), cut) == [("CW201", "gs_base")]


@pytest.mark.parametrize(
    "changes", [{"rip": KERNEL_RIP + 0x777, "rsp": KERNEL_BASE}, {"gs_base": KERNEL_BASE, "kernel_gs_base": 0}]
)
def test_a_swap_on_the_way_back_that_may_be(changes: dict[str, int]) -> None:
    assert found(returned(**changes)) == []


def unswapped(**changes: Any) -> list[Batch]:
    """The machine's first entry from user code: its handler does not swap, and faults where it uses GS."""
    ctx = context(gs_base=changes.pop("gs_base", 0))
    first = entry(ctx)
    inside = context(user=False, gs_base=ctx["gs_base"], kernel_gs_base=ctx["kernel_gs_base"], cr3=ctx["cr3"])
    access = entry(inside, pc=inside["rip"])
    access["kind"], access["how"], access["vector"] = Kind.GS_ACCESS, 0, 0
    what = {"cr2": changes.get("cr2", 0x18), "vector": changes.get("vector", vectors.PF)}
    return [first, access, entry(inside | changes, How.EXCEPTION, **what)]


@pytest.mark.parametrize("cut", [1, 2, 99])
def test_the_first_entry_that_needs_a_swap_has_none(cut: int) -> None:
    assert found(unswapped(), cut) == [("CW202", "gs_base")]


@pytest.mark.parametrize(
    "changes",
    [{"rip": KERNEL_RIP + 0x77}, {"cr2": KERNEL_BASE}, {"gs_base": KERNEL_BASE}, {"vector": vectors.GP}],
    ids=["another instruction", "kernel's address", "the kernel's base in user code", "no page fault"],
)
def test_a_fault_that_needs_no_swap(changes: dict[str, int]) -> None:
    assert found(unswapped(**changes)) == []
