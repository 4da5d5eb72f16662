"""General registers, segment registers and MSR numbers.

Order: the hardware's encoding order (Intel SDM vol. 2, table 2-2 "ModR/M" and table 3-1), which is also the order of
the sixteen register columns of an event row.
"""

from __future__ import annotations

import re
from typing import Final

GPR64: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
"""The sixteen general registers by encoding number."""

GPR32: Final = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
"""ia32 has the first eight; their event columns are those of GPR64."""

SEGMENTS: Final = ("cs", "ss", "ds", "es", "fs", "gs")

CALLEE_SAVED_64: Final = ("rbx", "rbp", "r12", "r13", "r14", "r15")
"""System V AMD64 psABI, figure 3.4."""

CALLEE_SAVED_32: Final = ("rbx", "rbp", "rsi", "rdi")
"""System V i386 psABI, table 2.3 (column names of the event row)."""

CALLER_SAVED_64: Final = ("rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
CALLER_SAVED_32: Final = ("rcx", "rdx")
"""What a function of these conventions may change besides RAX, its result."""

MSR_STAR: Final = 0xC000_0081
MSR_LSTAR: Final = 0xC000_0082
MSR_CSTAR: Final = 0xC000_0083
MSR_FMASK: Final = 0xC000_0084
MSR_FS_BASE: Final = 0xC000_0100
MSR_GS_BASE: Final = 0xC000_0101
MSR_KERNEL_GS_BASE: Final = 0xC000_0102
MSR_SYSENTER_CS: Final = 0x174
MSR_SYSENTER_ESP: Final = 0x175
MSR_SYSENTER_EIP: Final = 0x176

MSR_NAMES: Final[dict[int, str]] = {
    MSR_STAR: "STAR",
    MSR_LSTAR: "LSTAR",
    MSR_CSTAR: "CSTAR",
    MSR_FMASK: "FMASK",
    MSR_FS_BASE: "FS_BASE",
    MSR_GS_BASE: "GS_BASE",
    MSR_KERNEL_GS_BASE: "KERNEL_GS_BASE",
    MSR_SYSENTER_CS: "SYSENTER_CS",
    MSR_SYSENTER_ESP: "SYSENTER_ESP",
    MSR_SYSENTER_EIP: "SYSENTER_EIP",
}

_IN_32: Final = {name: "e" + name[1:] for name in GPR64[:8]} | {"rip": "eip", "rflags": "eflags"}


_WIDE_NAME: Final = re.compile(rf"\b(?:{'|'.join(_IN_32)})\b(?![^\[\]]*\])", re.IGNORECASE)
"""Not inside brackets: an operand is as the code has it, which may be a 64-bit kernel's below 32-bit user code."""


def display_name(field: str, bits: int = 64) -> str:
    """The name a person expects for the event column `field` in a `bits`-bit context (``rdi`` → ``edi``)."""
    return _IN_32.get(field, field) if bits == 32 else field


def named_for(bits: int, text: str) -> str:
    """A sentence with its registers named as a person expects of a `bits`-bit context (``RIP`` → ``EIP``)."""
    return _WIDE_NAME.sub(_narrow, text) if bits == 32 else text


def _narrow(found: re.Match[str]) -> str:
    name = _IN_32[found[0].lower()]
    return name.upper() if found[0].isupper() else name
