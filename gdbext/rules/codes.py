"""The finding codes: stable numbers, names and what each says. Each has a page in docs/codes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from gdbext.errors import UsageError

ERROR, WARNING = "error", "warning"


class Code(NamedTuple):
    """One kind of finding."""

    code: str
    name: str
    says: str


_TABLE: Final = (
    Code("CW101", "register-not-restored", "a general register differs at resume"),
    Code("CW102", "flags-not-restored", "RFLAGS differ at resume (RF ignored)"),
    Code("CW103", "selector-not-restored", "a DS/ES/FS/GS/SS/CS selector differs at resume"),
    Code("CW104", "fs-base-not-restored", "the FS base differs or is another thread's"),
    Code("CW105", "simd-not-restored", "XMM, MXCSR or x87 state differs at resume"),
    Code("CW106", "syscall-clobber", "a system call changed a register its ABI preserves"),
    Code("CW107", "wrong-context", "the resumed registers are those of another suspended context"),
    Code("CW108", "switch-clobber", "a voluntary switch lost a callee-saved register"),
    Code("CW201", "gs-parity", "the GS parity does not fit the privilege level at exit, or in kernel C code"),
    Code("CW202", "swapgs-missing", "the kernel reads gs: with the user base active"),
    Code("CW203", "swapgs-doubled", "an entry from kernel mode swapped, or an exit swapped twice"),
    Code("CW204", "user-gs-lost", "the user's GS base is not what it was"),
    Code("CW205", "kernel-gs-bad", "the kernel GS base is zero, non-canonical, in user range, or another CPU's"),
    Code("CW301", "frame-unbalanced", "RSP at iret is not the address of the frame the CPU pushed"),
    Code("CW302", "frame-overwritten", "a slot of a live hardware frame changed and nothing explains it"),
    Code("CW303", "wrong-landing-stack", "an entry from user mode landed on a stack that is not this thread's"),
    Code("CW304", "ist-reused", "an IST stack was entered again while a frame on it was live"),
    Code("CW305", "red-zone-overwritten", "a frame was pushed over the red zone of code that uses one"),
    Code(
        "CW401", "foreign-write", "a save area was written by code outside the profile's writers or from another stack"
    ),
    Code("CW402", "save-area-shifted", "the slots hold a context moved by N words"),
    Code("CW403", "slot-implausible", "a slot cannot hold what its register can hold"),
    Code("CW404", "slot-stale", "the value resumed was not stored on this save, but on an earlier one"),
    Code("CW405", "slot-clash", "two registers share one slot"),
    Code("CW501", "exception-in-window", "an entry interrupted a window"),
    Code("CW502", "nmi-nested", "an NMI was entered before the last one returned"),
    Code("CW601", "rip-noncanonical", "a return to a non-canonical address"),
    Code("CW602", "interrupts-off-in-user", "a return to user mode with IF clear"),
    Code("CW603", "privilege-leak", "a return with IOPL, VM, NT or a CS/SS that user code must not get"),
    Code("CW604", "selector-unusable", "the CS/SS pair that sysret or iret loads is not a valid user pair"),
    Code("CW605", "flags-not-sanitised", "DF, AC or NT from user mode still set in the handler's C code"),
    Code("CW701", "tracked-changed", "a tracked variable is not what it was at entry"),
    Code("CW702", "state-contradiction", "a tracked state contradicts the hardware"),
    Code("CW901", "machine-died", "triple fault or reset; the last events are attached"),
)

CODES: Final[dict[str, Code]] = {code.code: code for code in _TABLE}


def parse(text: str) -> frozenset[str]:
    """Return the codes named in `text`: a comma list of codes or families (``CW102,CW2xx``); raises UsageError."""
    if not text.strip(", "):
        raise UsageError("no finding code is named", todo="name some, or leave --rules out")
    chosen: set[str] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        stem = part.upper().rstrip("X")
        matches = {code for code in CODES if code.startswith(stem)} if len(stem) >= 3 else set()
        if not matches or (len(stem) < 5 and not part.upper().endswith("X")):
            raise UsageError(f"no finding code {part!r}", todo=f"codes are {_known()}; families are written CW1xx")
        chosen |= matches
    return frozenset(chosen)


def select(codes: Collection[str] | None) -> frozenset[str]:
    """The codes to judge: all of them for None."""
    return frozenset(CODES if codes is None else codes)


def _known() -> str:
    return ", ".join(CODES)
