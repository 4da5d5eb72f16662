"""Linear to physical addresses by the page tables of 64-bit mode, four levels deep (Intel SDM vol. 3A, 4.5.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gdbext.arch.addresses import CR3_TABLES, is_canonical

PAGE: Final = 4096
_PRESENT: Final = 1
_LARGE: Final = 1 << 7
"""PS: the entry maps a page of its own, 1 GB or 2 MB."""


def physical(read: Callable[[int, int], bytes], cr3: int, address: int) -> int | None:
    """The physical address of the linear `address` under `cr3`; None where it is not mapped.

    read: (physical address, length) → bytes; what it raises is passed on.
    """
    if not is_canonical(address):
        return None
    table = cr3 & CR3_TABLES
    for shift in (39, 30, 21, 12):
        entry = int.from_bytes(read(table + (address >> shift & 511) * 8, 8), "little")
        if not entry & _PRESENT:
            return None
        inside = (1 << shift) - 1
        if shift == 12 or (entry & _LARGE and shift < 39):
            return (entry & CR3_TABLES & ~inside) | (address & inside)
        table = entry & CR3_TABLES
    raise AssertionError("the last level maps")
