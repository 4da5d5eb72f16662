"""Exception and interrupt vectors (Intel SDM vol. 3A, table 6-1) and the pseudo-vectors of system calls."""

from __future__ import annotations

from typing import Final

SYSCALL: Final = 0x100
"""Pseudo-vector of an entry by the ``syscall`` instruction."""
SYSENTER: Final = 0x101
"""Pseudo-vector of an entry by ``sysenter``."""
UNKNOWN: Final = 0xFFFF
"""The source could not tell the vector."""

DE, DB, NMI, BP, OF, BR, UD, NM, DF = range(9)
TS, NP, SS, GP, PF = range(10, 15)
MF, AC, MC, XM, VE, CP = range(16, 22)
HV, VC, SX = 28, 29, 30

NAMES: Final[dict[int, str]] = {
    DE: "#DE divide error", DB: "#DB debug", NMI: "NMI", BP: "#BP breakpoint", OF: "#OF overflow",
    BR: "#BR bound range", UD: "#UD invalid opcode", NM: "#NM device not available", DF: "#DF double fault",
    TS: "#TS invalid TSS", NP: "#NP segment not present", SS: "#SS stack fault", GP: "#GP general protection",
    PF: "#PF page fault", MF: "#MF x87 error", AC: "#AC alignment check", MC: "#MC machine check",
    XM: "#XM SIMD error", VE: "#VE virtualization", CP: "#CP control protection",
    HV: "#HV hypervisor injection", VC: "#VC VMM communication", SX: "#SX security",
    SYSCALL: "syscall", SYSENTER: "sysenter",
}  # fmt: skip

WITH_ERROR_CODE: Final = frozenset({DF, TS, NP, SS, GP, PF, AC, CP, VC, SX})
"""Vectors for which the CPU pushes an error code (only when raised by hardware, not by ``int n``)."""

TRACER_MAY_EDIT: Final = frozenset({DB, BP})
"""A debugger may change the context of its tracee here."""


def name(vector: int) -> str:
    """The vector as a person writes it: ``#PF page fault``, ``interrupt 0x20``, ``syscall``."""
    if vector == UNKNOWN:
        return "unknown vector"
    return NAMES.get(vector) or f"interrupt {vector:#04x}"


def is_exception(vector: int) -> bool:
    """True for vectors 0–31 other than NMI: raised by the interrupted code itself."""
    return vector < 32 and vector != NMI
