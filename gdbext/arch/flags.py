"""RFLAGS bits (Intel SDM vol. 1, section 3.4.3, figure 3-8)."""

from __future__ import annotations

from typing import Final

CF, PF, AF, ZF, SF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7
TF, IF, DF, OF = 1 << 8, 1 << 9, 1 << 10, 1 << 11
IOPL = 3 << 12
NT, RF, VM, AC = 1 << 14, 1 << 16, 1 << 17, 1 << 18
UPPER: Final = 0xFFFF_FFFF << 32
"""The upper half of RFLAGS, reserved: it stays as it is whatever is popped into it (Intel SDM vol. 1, 3.4.3)."""
VIF, VIP, ID = 1 << 19, 1 << 20, 1 << 21

STATUS: Final = CF | PF | AF | ZF | SF | OF
"""The arithmetic flags."""

ALWAYS_ONE: Final = 1 << 1
RESERVED: Final = ~0x3F7FD7 & 0xFFFF_FFFF_FFFF_FFFF
"""Bits that are zero in every RFLAGS image (3, 5, 15, 22 and up)."""

NAMES: Final = (
    (CF, "CF"), (PF, "PF"), (AF, "AF"), (ZF, "ZF"), (SF, "SF"), (TF, "TF"), (IF, "IF"), (DF, "DF"), (OF, "OF"),
    (NT, "NT"), (RF, "RF"), (VM, "VM"), (AC, "AC"), (VIF, "VIF"), (VIP, "VIP"), (ID, "ID"),
)  # fmt: skip


def describe(rflags: int) -> str:
    """Name the bits that are set, lowest first: ``CF ZF IF``, with ``IOPL=n`` when it is not 0; ``-`` for none."""
    names = [name for bit, name in NAMES if rflags & bit]
    if rflags & IOPL:
        names.append(f"IOPL={(rflags & IOPL) >> 12}")
    return " ".join(names) or "-"


def difference(expected: int, actual: int) -> str:
    """Say which bits differ, each with its new state: ``ZF lost, CF gained``. RF is left out: faults set it."""
    changed = (expected ^ actual) & ~RF
    parts = [f"{name} {'gained' if actual & bit else 'lost'}" for bit, name in NAMES if changed & bit]
    if (expected ^ actual) & IOPL:
        parts.append(f"IOPL {(expected & IOPL) >> 12} → {(actual & IOPL) >> 12}")
    return ", ".join(parts) or "no named bit"
