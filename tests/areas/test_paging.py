"""Memory under page tables that no vCPU runs on: the walk, and areas that only the kernel's tables map."""

from __future__ import annotations

import numpy as np
import pytest

from gdbext.arch.paging import physical
from gdbext.events.row import ROW, Batch, Kind
from gdbext.profiles.profile import find
from gdbext.sources.areas import AreaWatcher
from tests.areas.test_learning import AREA, Memory, nowhere
from tests.rules.rows import KERNEL_BASE, batch, context, entry, stamp

KERNEL_CR3, USER_CR3 = 0x100000, 0x200000
TABLES = {
    0x1000 + 511 * 8: 0x2000 | 0x63,
    0x2000 + 510 * 8: 0x3000 | 0x63,
    0x2000 + 511 * 8: 0x4000_0000 | 0xE3,
    0x3000 + 2 * 8: 0x20_0000 | 0xE3,
    0x3000 + 3 * 8: 0x4000 | 0x63,
    0x4000 + 7 * 8: 0x8000_0000_0009_9000 | 0x63,
}
"""Physical address → entry: a 1 GB page, a 2 MB page and a 4 KB page that is not for execution."""


def read(address: int, length: int) -> bytes:
    return TABLES.get(address, 0).to_bytes(length, "little")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (0xFFFFFFFF_80407123, 0x207123),
        (0xFFFFFFFF_80607123, 0x99123),
        (0xFFFFFFFF_80608000, None),
        (0xFFFFFFFF_80200000, None),
        (0xFFFFFFFF_C1234567, 0x41234567),
        (0x0000_8000_0000_0000, None),
        (0x1000, None),
    ],
)
def test_walk(address: int, expected: int | None) -> None:
    assert physical(read, 0x1000 | 0xFFF, address) == expected


def loads_cr3(before: int, value: int) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["mode"], row["cr3"], row["value"] = Kind.CR3, 64, before, value
    return row


@pytest.mark.parametrize("last", [(KERNEL_CR3, USER_CR3), (USER_CR3, KERNEL_CR3)], ids=["left", "entered"])
def test_an_area_that_only_the_kernel_s_tables_map(last: tuple[int, int]) -> None:
    kernels = Memory({KERNEL_BASE + 8: AREA}, [range(AREA, AREA + 704)])

    def under(address: int, length: int, cr3: int) -> bytes:
        if cr3 != KERNEL_CR3:
            raise OSError(f"{address:#x} is not mapped under CR3 {cr3:#x}")
        return kernels.read_memory(address, length)

    source, notes = Memory({}), list[str]()
    found = AreaWatcher(find("nrk"), source, nowhere, notes.append, under=under)
    rows = found.look(stamp(batch(loads_cr3(*last), entry(context(cr3=USER_CR3)))))
    assert (rows["addr"].tolist(), notes) == ([AREA], [])
    assert source.watched
