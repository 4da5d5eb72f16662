"""CW205 in kernels that write the GS base and never swap it."""

from __future__ import annotations

import pytest

from gdbext.events.row import Batch
from gdbext.rules.unswapped_base import STEADY
from tests.rules.judged import judged
from tests.rules.rows import KERNEL_RIP, Kind, context, entry, exit_

BASES = (0xFFFF800000100000, 0xFFFF800000200000)


def ticks(cpu: int, base: int, times: int = STEADY) -> list[Batch]:
    ctx = context(cpu + 1) | {"cs": 8, "ss": 16, "rip": KERNEL_RIP, "cpu": cpu, "gs_base": base}
    ctx |= {"rsp": 0xFFFF800000010000 + 0x1000 * cpu}
    return [row(ctx) for _ in range(times) for row in (entry, exit_)]


def codes(*rows: Batch) -> list[str]:
    """The codes found."""
    return [finding.code for finding in judged(*rows)]


EACH = [*ticks(0, BASES[0]), *ticks(1, BASES[1])]


def test_kernel_code_goes_on_with_another_cpu_s_base() -> None:
    assert codes(*EACH, *ticks(1, BASES[0], 1)) == ["CW205"]


@pytest.mark.parametrize(
    "rows",
    [
        [*EACH, *EACH],
        [*EACH, *ticks(1, 0xFFFF800000300000, 1)],
        [*ticks(0, BASES[0]), *ticks(0, BASES[1]), *ticks(1, BASES[1]), *ticks(1, BASES[0])],
        [*ticks(0, BASES[0]), *ticks(1, BASES[1], 2), *ticks(1, BASES[0], 1)],
    ],
    ids=["its own", "nobody's", "the thread's", "hardly known"],
)
def test_what_may_be(rows: list[Batch]) -> None:
    assert codes(*rows) == []


def writes(cpu: int, base: int, times: int = STEADY) -> list[Batch]:
    rows = [entry(context(cpu + 1) | {"cpu": cpu}) for _ in range(times)]
    for row in rows:
        row["kind"], row["how"], row["addr"], row["value"] = Kind.BASE, 33, 0xC0000101, base
        row["pc"] = KERNEL_RIP
    return rows


def test_another_cpu_s_base_is_written() -> None:
    known = [*writes(0, BASES[0]), *writes(1, BASES[1]), *writes(0, 0x7000), *writes(1, 0x7000)]
    assert codes(*known, *writes(1, BASES[0], 1)) == ["CW205"]
    assert codes(*known, *writes(1, BASES[1], 1), *ticks(1, BASES[1], 1)) == []


def test_a_kernel_that_swaps_is_judged_elsewhere() -> None:
    swap = entry(context(9))
    swap["kind"] = Kind.SWAPGS
    assert "CW205" not in codes(swap, *EACH, *ticks(1, BASES[0], 1))
