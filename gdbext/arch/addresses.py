"""Linear addresses: canonical form, halves, selectors' privilege (Intel SDM vol. 1, 3.3.7.1; vol. 3A, 3.4.2)."""

from __future__ import annotations

from typing import Final

MASK64: Final = 0xFFFF_FFFF_FFFF_FFFF
MASK32: Final = 0xFFFF_FFFF

CR3_TABLES: Final = 0x000F_FFFF_FFFF_F000
"""CR3 bits that are the address of the page tables: without the PCID (bits 0–11) and bit 63 (no flush).

Bit 12 tells the user's from the kernel's copy where page-table isolation keeps them side by side, and two processes
apart where it does not. User code is entered from and resumed under one copy: nothing behind the iret can change it."""

CR3_COPIES: Final = 1 << 12
"""The bit of CR3 in which the user's and the kernel's copy differ, and nothing else of the address does."""

CR3_TABLE_32: Final = 0xFFFF_FFE0
"""CR3 bits that name an address space of a 32-bit kernel: with PAE the top table has 32 bytes, many share a page."""


def is_canonical(address: int, bits: int = 48) -> bool:
    """True if bits 63 … `bits`-1 of the 64-bit `address` are all equal."""
    top = address >> (bits - 1)
    return top in (0, (1 << (65 - bits)) - 1)


def is_high_half(address: int) -> bool:
    """True for the upper canonical half, where 64-bit kernels live."""
    return address >> 63 == 1


def rpl(selector: int) -> int:
    """Requested privilege level of a selector: for CS, the privilege level of the context."""
    return selector & 3
