"""One event, one row: the single description from which the NumPy dtype and the probe's C struct are made.

All integers are little-endian and unsigned; addresses are guest virtual unless a field says otherwise. A batch is a
one-dimensional array of :data:`ROW`, in order of ``seq`` per CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gdbext.arch.addresses import MASK64
from gdbext.arch.registers import GPR64

SCHEMA_VERSION: Final = 1


class Kind:
    """What happened (column ``kind``)."""

    ENTRY = 1  # the first instruction of a handler is about to run; context = the interrupted one
    EXIT = 2  # an iret/sysret/sysexit is about to run; context = the one it will resume
    SWAPGS = 3  # a swapgs is about to run; gs_base/kernel_gs_base are as before it
    BASE = 4  # an MSR or base register was/will be written; addr = MSR number, value = new value
    CR3 = 5  # mov to cr3; value = new CR3
    GS_ACCESS = 6  # kernel code accesses gs: while, by count, the user's base is active; addr = linear address
    SWITCH_OUT = 7  # first instruction of a stack-switching function; callee-saved registers live
    SWITCH_IN = 8  # the stack-switching function is about to return; callee-saved registers live
    STORE = 9  # a watched range was written; addr, value, size
    TRACKED = 10  # a tracked variable was written; addr, value, size
    DIED = 11  # triple fault or reset
    IDT = 12  # lidt: addr = base, value = limit
    AREA = 13  # a save area became known: addr = its start, value = its size (made by the reader, not by the guest)

    SLOT = 14  # where learnt save areas keep a register: addr = byte offset, size = bytes, value: SLOT_NAMES[value]
    RESTORED = 15  # the machine goes on in another state than it stood in: a snapshot was loaded

    NAMES: Final = {
        1: "entry", 2: "exit", 3: "swapgs", 4: "base", 5: "cr3", 6: "gs-access", 7: "switch-out",
        8: "switch-in", 9: "store", 10: "tracked", 11: "died", 12: "idt", 13: "area", 14: "slot",
        15: "restored",
    }  # fmt: skip


class How:
    """The flavour of an entry, exit or base write (column ``how``)."""

    UNKNOWN = 0
    # entries
    INTERRUPT = 1
    EXCEPTION = 2
    NMI = 3
    SOFT = 4
    SYSCALL = 5
    SYSENTER = 6
    # exits
    IRET = 16
    SYSRET = 17
    SYSEXIT = 18
    TASK = 19  # a hardware task switch: by iret with NT set, or a far jump or call to a TSS; also of switch-out/-in
    FAR = 20  # a far return to what was interrupted; value = 1: nothing has loaded flags since the entry
    NEAR = 21  # popf and ret to what was interrupted
    # base writes
    WRMSR = 32
    WRBASE = 33  # wrfsbase/wrgsbase

    NAMES: Final = {
        0: "unknown", 1: "interrupt", 2: "exception", 3: "nmi", 4: "int n", 5: "syscall", 6: "sysenter",
        16: "iret", 17: "sysret", 18: "sysexit", 19: "task switch", 20: "far return",
        21: "return", 32: "wrmsr", 33: "wrbase",
    }  # fmt: skip

    @classmethod
    def name(cls, how: int) -> str:
        """What `how` is called; that of a crafted recording need not be one of ours."""
        return cls.NAMES.get(how, cls.NAMES[cls.UNKNOWN])


class Flag:
    """Bits of column ``flags``."""

    IDENTICAL = 1 << 0  # exit: the source's own ledger found the context bit-identical to entry `match`
    ERROR_CODE = 1 << 1  # entry: the CPU pushed an error code, column `error`
    WAITING = 1 << 2  # the vCPU stands still until it is released
    PARITY_KERNEL = 1 << 3  # by count of swapgs the kernel's GS base is active (valid if PARITY_KNOWN)
    PARITY_KNOWN = 1 << 4
    UNREADABLE = 1 << 5  # the frame could not be read: rip, cs, rflags, rsp, ss and stack are not captured
    IST = 1 << 6  # entry: the gate names an IST stack
    SELF = 1 << 7  # exit: resumes the instruction after itself at the same CPL (serialising iret)
    NO_STACK = 1 << 8  # ia32: the frame holds no SS:ESP (same privilege); rsp is computed, ss is live
    FLAGS_PARTIAL = 1 << 9  # rflags was read live and lacks the arithmetic flags and DF
    NO_KERNEL_GS = 1 << 10  # kernel_gs_base was not captured
    NO_BASES = 1 << 11  # fs_base and gs_base were not captured
    SIMD = 1 << 12  # the SIMD block is valid
    STALE = 1 << 13  # flight recorder: older rows were overwritten before this one
    LINEAR32 = 1 << 14  # entry/exit: the context is 32-bit code (compatibility mode or ia32)
    FPU_OFF = 1 << 15  # CR0.TS is set: what the FPU registers hold need not be this context's (lazy switching)


NOT_READ: Final = MASK64
"""In the column ``tracked``: the variable could not be read."""


class Field(NamedTuple):
    """One column: name, NumPy type code, C type, array length (1: scalar), meaning."""

    name: str
    numpy: str
    c: str
    length: int
    doc: str


def _u64(name: str, doc: str, length: int = 1) -> Field:
    return Field(name, "<u8", "uint64_t", length, doc)


def _u16(name: str, doc: str) -> Field:
    return Field(name, "<u2", "uint16_t", 1, doc)


def _u8(name: str, doc: str) -> Field:
    return Field(name, "u1", "uint8_t", 1, doc)


SLOT_NAMES: Final = (
    *GPR64, "rip", "rflags", "cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base", "error", "fault_rip",
)  # fmt: skip
"""What a slot of a save area can hold: columns of the row, the error code, and seL4's FaultIP. Append only: a
recording holds positions in it."""

STACK_WORDS: Final = 8
TRACKED_SLOTS: Final = 4

FIELDS: Final[tuple[Field, ...]] = (
    _u64("seq", "event number over all CPUs, from 1; the order in which events were captured"),
    _u64("time", "nanoseconds of the host's monotonic clock"),
    _u64("pc", "address of the instruction at which the event was seen"),
    _u64("frame", "address of the hardware frame's RIP word: pushed (entry) or popped (exit); 0 for sysret/syscall"),
    _u8("kind", "Kind"),
    _u8("how", "How"),
    _u16("cpu", "vCPU index"),
    _u16("vector", "entry: vector, 0x100 syscall, 0x101 sysenter, 0xffff unknown; else 0"),
    _u16("flags", "Flag bits"),
    Field("error", "<u4", "uint32_t", 1, "entry: error code, when Flag.ERROR_CODE"),
    _u8("mode", "bits of the running (handler) code: 16, 32 or 64"),
    _u8("cpl", "privilege level of the running code"),
    _u8("size", "bytes stored or accessed (store, tracked, gs-access); word size popped (exit)"),
    _u8("spare", "zero"),
    *(
        _u64(
            name,
            "general register; entry/exit: of the interrupted/resumed context"
            if name != "rsp"
            else "stack pointer of the interrupted/resumed context (entry, exit), else live",
        )
        for name in GPR64
    ),
    _u64("rip", "entry/exit: of the interrupted/resumed context, else = pc"),
    _u64("rflags", "entry/exit: of the interrupted/resumed context, else live (see FLAGS_PARTIAL)"),
    _u64("fs_base", "live FS base"),
    _u64("gs_base", "live active GS base"),
    _u64("kernel_gs_base", "live inactive GS base (MSR C0000102h)"),
    _u64("cr2", "live"),
    _u64("cr3", "live; of 32-bit user code whose segment begins elsewhere than at 0, and where that is added"),
    _u16("cs", "entry/exit: of the interrupted/resumed context, else live"),
    _u16("ss", "likewise"),
    _u16("ds", "live selector"),
    _u16("es", "live selector"),
    _u16("fs", "live selector"),
    _u16("gs", "live selector"),
    Field("mxcsr", "<u4", "uint32_t", 1, "live MXCSR when Flag.SIMD, else 0"),
    _u64(
        "stack",
        "words of the frame's size, zero-extended: entry: from the frame's RIP word up; exit: from RSP up",
        STACK_WORDS,
    ),
    _u64("tracked", "tracked variables of the profile, in its order; all ones: could not be read", TRACKED_SLOTS),
    _u64(
        "addr",
        "store, tracked, gs-access: linear address; base: MSR number; idt: base; entry, exit and switches by which the "
        "CPU changed tasks: the TSS that keeps the context, else 0",
    ),
    _u64(
        "value",
        "store, tracked: value; base, cr3: new value; idt: limit; exit to user code that is not IDENTICAL: the four "
        "bytes in front of RIP, 0 if they could not be read",
    ),
    _u64(
        "match",
        "exit: seq of the entry the source paired it with, 0 for none; switch-in likewise; store told late: seq of the "
        "last event before it",
    ),
    _u64("star", "last STAR value the source saw written on any CPU, 0 if none"),
)

ROW: Final = np.dtype([(f.name, f.numpy) if f.length == 1 else (f.name, f.numpy, (f.length,)) for f in FIELDS])
"""The row's dtype; packed, every field naturally aligned."""

XMM_REGISTERS: Final = 16
X87_REGISTERS: Final = 8

SIMD: Final = np.dtype(
    [("xmm", "<u8", (XMM_REGISTERS, 2)), ("x87", "<u8", (X87_REGISTERS, 2)), ("fctrl", "<u8"), ("fstat", "<u8")]
)
"""The block that follows a row when SIMD state is captured (low quadword first; x87: 80 bits in two words)."""

ROW_SIMD: Final = np.dtype([(name, ROW.fields[name][0]) for name in ROW.names or ()] + [("simd", SIMD)])  # type: ignore[index]

Batch = npt.NDArray[np.void]
"""One-dimensional array of ROW or ROW_SIMD."""


def empty(count: int = 0, simd: bool = False) -> Batch:
    """Return `count` zeroed rows."""
    return np.zeros(count, ROW_SIMD if simd else ROW)


def words(batch: Batch) -> npt.NDArray[np.uint64]:
    """The rows of `batch` as an (n, quadwords) array, a view where they lie side by side.

    For copying: NumPy copies structures field by field, thirty times slower than their bytes.
    """
    quadwords = batch.dtype.itemsize // 8
    return np.ascontiguousarray(batch).view("<u8").reshape(len(batch), quadwords)


def pick(batch: Batch, index: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> Batch:
    """A copy of the rows at `index`: positions, a mask or a slice."""
    chosen = words(batch)[index]
    return np.array(chosen, order="C", copy=isinstance(index, slice)).reshape(-1).view(batch.dtype)


def single(batch: Batch, at: int) -> Batch:
    """A copy of the row at `at`, as a batch of one."""
    row: Batch = words(batch)[at].copy().view(batch.dtype)
    return row


def concat(parts: Sequence[Batch]) -> Batch:
    """Return the rows of `parts` (at least one, all of one dtype) in one batch.

    As raw bytes: NumPy copies structures field by field, a hundred times slower.
    """
    if len(parts) == 1:
        return parts[0]
    dtype = parts[0].dtype
    whole: Batch = np.concatenate([np.ascontiguousarray(part).view(f"V{dtype.itemsize}") for part in parts]).view(dtype)
    return whole


def c_header() -> str:
    """Return the C text of the row: struct, enums and flags, from the same description as the dtype."""
    lines = ["/* Generated from gdbext/events/row.py: do not edit. */", "#pragma once", "#include <stdint.h>", ""]
    lines.append(f"#define CTX_SCHEMA_VERSION {SCHEMA_VERSION}")
    for prefix, source in (("KIND", Kind), ("HOW", How), ("FLAG", Flag)):
        for name, value in vars(source).items():
            if name.isupper() and isinstance(value, int):
                lines.append(f"#define CTX_{prefix}_{name} {value}u")
    lines += ["", "typedef struct ctx_row {"]
    for field in FIELDS:
        array = f"[{field.length}]" if field.length > 1 else ""
        lines.append(f"    {field.c} {field.name}{array};")
    lines += ["} ctx_row;", f'_Static_assert(sizeof(ctx_row) == {ROW.itemsize}, "row size");', ""]
    lines += [
        "typedef struct ctx_simd {",
        f"    uint64_t xmm[{XMM_REGISTERS}][2];",
        f"    uint64_t x87[{X87_REGISTERS}][2];",
        "    uint64_t fctrl;",
        "    uint64_t fstat;",
        "} ctx_simd;",
        f'_Static_assert(sizeof(ctx_simd) == {SIMD.itemsize}, "simd size");',
        "",
    ]
    return "\n".join(lines)
