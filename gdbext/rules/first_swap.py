"""CW201 to CW203 before any entry was seen to swap: by the first entry from user mode that should, and by the first
``swapgs`` of the machine, in a handler of kernel code.

Of the latter no count tells yet which base is active. What happens does: the kernel's base was there when the handler
began, nothing was behind ``KERNEL_GS_BASE``, and the handler's own code faults with nothing for a base: in the lower
half, or (#GP) by what it read there for a pointer. Or it returns at once, and what it interrupted has lost its base.
"""

from __future__ import annotations

from typing import Final

from gdbext.arch import vectors
from gdbext.arch.addresses import is_high_half
from gdbext.events.row import Batch, Flag, Kind
from gdbext.ledger.compare import is_user
from gdbext.rules.draft import Draft
from gdbext.rules.finding import Difference

NEXT_INSN: Final = 8
"""A fault this close behind a swap is that of the instruction next to it (a selector load)."""
ON_STACK: Final = 4096
"""RSP this close below the frame of an entry is that of its handler."""


def judge(entry: Batch, swap: Batch, fault: Batch) -> Draft | None:
    """What three events in a row of one CPU, whose parity is unknown, show (each a batch of one)."""
    pointer = fault["vector"][0] == vectors.GP
    if not (_from_kernel(entry) and _from_kernel(fault) and (pointer or fault["vector"][0] == vectors.PF)):
        return None
    kernels, others = int(entry["gs_base"][0]), int(entry["kernel_gs_base"][0])
    if not is_high_half(kernels) or is_high_half(others):
        return None
    if fault["gs_base"][0] != others or fault["kernel_gs_base"][0] != kernels:
        return None
    rip, address = int(fault["rip"][0]), int(fault["cr2"][0])
    nested = 0 < int(entry["frame"][0]) - int(fault["rsp"][0]) <= ON_STACK
    near = abs(rip - int(swap["pc"][0])) <= NEXT_INSN
    if not nested or near or not is_high_half(rip) or (is_high_half(address) and not pointer):
        return None
    what = "by what it read for a pointer" if pointer else f"{address:#x}"
    cause = (
        f"{vectors.name(int(entry['vector'][0]))} interrupted kernel code, and its handler swapped at "
        f"{int(swap['pc'][0]):#x}: the kernel's GS base went, {others:#x} came, and the handler faults at {rip:#x} "
        f"({what})"
    )
    look = "which word the entry tests for the privilege level: CS, with or without error code"
    return Draft("CW203", cause, look, (Difference("gs_base", kernels, others),))


def judge_exit(entry: Batch, swap: Batch, leaving: Batch) -> Draft | None:
    """The same of a handler that returns right behind the swap, to the kernel code which it has interrupted."""
    names = "rip", "rsp", "cr3"
    if leaving["kind"][0] != Kind.EXIT or not _from_kernel(entry) or any(entry[n][0] != leaving[n][0] for n in names):
        return None
    kernels, others = int(entry["gs_base"][0]), int(entry["kernel_gs_base"][0])
    if not is_high_half(kernels) or is_high_half(others) or leaving["gs_base"][0] != others:
        return None
    cause = (
        f"{vectors.name(int(entry['vector'][0]))} interrupted kernel code with GS base {kernels:#x}, and its handler, "
        f"which had not swapped, does on its way back, at {int(swap['pc'][0]):#x}: that code goes on with {others:#x}"
    )
    look = "how this exit path decides to swap: from the saved CS, at the right offset?"
    return Draft("CW201", cause, look, (Difference("gs_base", kernels, others),), match="exact")


def is_missing(entry: Batch, access: Batch, fault: Batch) -> bool:
    """True if the handler of `entry`, which came from user code, did without the swap that `fault` shows it needs.

    Three events in a row of one CPU (each a batch of one); the second is a ``gs:`` access at the user's base.
    """
    if not _from_kernel(fault) or fault["vector"][0] != vectors.PF or fault["rip"][0] != access["pc"][0]:
        return False
    bases = [int(row[name][0]) for row in (entry, fault) for name in ("gs_base", "kernel_gs_base")]
    same = bases[:2] == bases[2:] and not entry["flags"][0] & (Flag.NO_BASES | Flag.NO_KERNEL_GS)
    return same and is_high_half(bases[1]) and not is_high_half(bases[0]) and not is_high_half(int(fault["cr2"][0]))


def _from_kernel(row: Batch) -> bool:
    """True for an entry from 64-bit kernel code that carries both bases."""
    is_entry = row["kind"][0] == Kind.ENTRY and not is_user(row)[0] and row["mode"][0] == 64
    return bool(is_entry and not row["flags"][0] & (Flag.NO_BASES | Flag.NO_KERNEL_GS))
