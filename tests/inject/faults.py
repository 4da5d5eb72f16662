"""The catalogue: every fault by name, each with what does it and which kernels can have it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from gdbext.arch import flags as rf
from gdbext.arch.registers import GPR64, MSR_FS_BASE, MSR_KERNEL_GS_BASE, SEGMENTS
from tests.inject.code_faults import (
    SWAPS,
    WINDOWS,
    double_swapgs,
    drop_in_switch,
    drop_load,
    drop_store,
    except_in_window,
    exchange_loads,
    exchange_stores,
    leave_scratch,
    skip_swapgs,
)
from tests.inject.scene import INTERRUPT, KERNEL, NMI, SYSCALL, USER, Expect, Injection, Scene
from tests.inject.stop_faults import (
    change_base,
    change_frame,
    change_register,
    change_tracked,
    contradict,
    move_rsp,
    turn_flag,
)
from tests.inject.stored_faults import change_stored, change_xmm

Apply = Callable[[Scene], Injection]
WORKLOAD: Final = "spin,forks,traps"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    ``bits``: kernels it can be in; ``workload``: what shows it on Linux; ``simd``: it needs SIMD state captured;
    ``nmi``: it needs NMIs.
    """

    name: str
    says: str
    apply: Apply
    bits: tuple[int, ...] = (64, 32)
    workload: str = WORKLOAD
    simd: bool = False
    nmi: bool = False


_SAVED: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
_CALL: Final = ("rbx", "rbp", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r12", "r13", "r14", "r15")
_USER_FLAGS: Final = (
    ("if", rf.IF, ("CW602",)), ("tf", rf.TF, ("CW102",)), ("df", rf.DF, ("CW102",)), ("iopl", rf.IOPL, ("CW603",)),
    ("nt", rf.NT, ("CW603",)), ("ac", rf.AC, ("CW102",)), ("cf", rf.CF, ("CW102",)), ("zf", rf.ZF, ("CW102",)),
    ("rf", rf.RF, ()),
)  # fmt: skip
_KERNEL_FLAGS: Final = (
    ("if", rf.IF, ("CW102",)), ("tf", rf.TF, ("CW102",)), ("df", rf.DF, ("CW102",)), ("iopl", rf.IOPL, ("CW102",)),
    ("nt", rf.NT, ("CW102",)), ("ac", rf.AC, ("CW102",)), ("zf", rf.ZF, ("CW102",)), ("rf", rf.RF, ()),
)  # fmt: skip


def _workload(name: str) -> str:
    """What has something of its own in the register `name`."""
    return "segments,spin" if name in SEGMENTS else WORKLOAD


def _kernels(path: str, name: str) -> tuple[int, ...]:
    """The kernels in which losing `name` on `path` shows: selectors are kept by 32-bit ones, EDX is sysexit's."""
    if name in SEGMENTS:
        return (32,)
    wide = name in GPR64[8:] or (path == SYSCALL and name == "rdx") or path == NMI
    return (64,) if wide else (64, 32)


_SELECTORS: Final = ("ds", "es", "fs")
Names = tuple[str, ...]
_STORED: Final[tuple[tuple[str, Names], ...]] = (
    (INTERRUPT, (*_SAVED, *_SELECTORS)), (SYSCALL, (*_CALL, "fs")),
)  # fmt: skip
_LOADED: Final[tuple[tuple[str, Names], ...]] = (
    (USER, (*_SAVED, *_SELECTORS)), (KERNEL, _SAVED), (SYSCALL, _CALL),
)  # fmt: skip
_SWITCHED: Final = ("rbx", "rbp", "r12", "r15", "rsi", "rdi")


def _moves() -> Iterator[Fault]:
    for path, names in _STORED:
        for name in names:
            bits = _kernels(path, name)
            says = f"the {path} entry does not store {name}"
            yield Fault(f"{path}-drop-store-{name}", says, partial(drop_store, path, name), bits, _workload(name))
        yield Fault(
            f"{path}-exchange-stores", f"the {path} entry stores two registers in each other's slots",
            partial(exchange_stores, path),
        )  # fmt: skip
    for path, names in _LOADED:
        for name in names:
            bits = (64,) if path == KERNEL else _kernels(path, name)
            says = f"the exit to {path} code does not load {name}" if path != SYSCALL else f"sysret without {name}"
            yield Fault(f"{path}-drop-load-{name}", says, partial(drop_load, path, name), bits, _workload(name))
        yield Fault(
            f"{path}-exchange-loads", "two registers are loaded from each other's slots",
            partial(exchange_loads, path), (64,) if path == KERNEL else (64, 32),
        )  # fmt: skip
    for part, name in itertools.product(("store", "load"), _SWITCHED):
        bits = (32,) if name in ("rsi", "rdi") else _kernels("", name)
        says = f"the thread switch does not {part} {name}"
        yield Fault(f"switch-drop-{part}-{name}", says, partial(drop_in_switch, part, name), bits)


_BITS: Final = 0x5A5A000
"""Turned over in registers."""


def _frames() -> Iterator[Fault]:
    for path, table in ((USER, _USER_FLAGS), (KERNEL, _KERNEL_FLAGS), (SYSCALL, _USER_FLAGS)):
        for name, bit, codes in table:
            if (path, name) == (SYSCALL, "cf"):
                continue  # the error flag of many ABIs' system calls
            bits = (64,) if path == SYSCALL else (64, 32)
            says = f"{name.upper()} of the saved RFLAGS is turned over in front of a return"
            yield Fault(f"{path}-flag-{name}", says, partial(turn_flag, path, bit, codes), bits)
    for path in (USER, KERNEL):
        for words, name in ((1, "up"), (-1, "down")):
            says = f"RSP is one word too {'high' if words > 0 else 'low'} at the iret to {path} code"
            yield Fault(f"{path}-rsp-{name}", says, partial(move_rsp, path, words))
        yield Fault(
            f"{path}-frame-rip", "the saved RIP is another",
            partial(change_frame, path, "rip", lambda v: v + 1, Expect(("CW101", "CW302"), frozenset({"rip"}))),
        )  # fmt: skip
    yield Fault(
        "user-frame-rsp", "the saved RSP is another",
        partial(change_frame, USER, "rsp", lambda v: v - 0x12340, Expect(("CW101", "CW302"), frozenset({"rsp"}))),
    )  # fmt: skip
    yield Fault(
        "user-frame-cs", "the saved CS is the kernel's",
        partial(change_frame, USER, "cs", lambda v: v & ~3, Expect(("CW603",), frozenset({"cs"}))),
    )  # fmt: skip
    yield Fault(
        "user-frame-rip-noncanonical", "the saved RIP is not canonical",
        partial(change_frame, USER, "rip", lambda v: v | 1 << 62, Expect(("CW601",))), (64,),
    )  # fmt: skip
    yield Fault(
        "user-frame-ss", "the saved SS is a null selector",
        partial(change_frame, USER, "ss", lambda v: 0, Expect(("CW103", "CW604", "CW603"))),
    )  # fmt: skip
    for path in (USER, SYSCALL):
        for name, code in (("fs_base", "CW104"), ("gs_base", "CW204")):
            says = f"the user's {name} is another at the return"
            yield Fault(f"{path}-{name}", says, partial(change_register, path, name, _BITS, (code,)), (64,))
        lost: Names = ("CW101", "CW106") if path == USER else ("CW106",)
        yield Fault(f"{path}-rbx", "RBX is another at the return", partial(change_register, path, "rbx", _BITS, lost))
    for name, turned in (("user", 0xFFFF << 48), ("noncanonical", 1 << 62)):
        says = f"the kernel's GS base is {'in the user half' if name == 'user' else 'not canonical'} at a return"
        apply = partial(change_register, USER, "k_gs_base", turned, ("CW205",))
        yield Fault(f"kernel-gs-base-{name}", says, apply, (64,))


_STORED_WORDS: Final[tuple[tuple[str, str, int, Names], ...]] = (
    ("rflags-df", "rflags", rf.DF, ("CW102",)), ("rflags-iopl", "rflags", rf.IOPL, ("CW603",)),
    ("rflags-if", "rflags", rf.IF, ("CW602",)), ("rflags-nt", "rflags", rf.NT, ("CW603",)),
    ("rip", "rip", 1, ("CW101", "CW302")), ("rsp", "rsp", 0x12340, ("CW101", "CW302")),
    ("rbx", "rbx", 1 << 20, ("CW101",)), ("rsi", "rsi", 1 << 20, ("CW101",)), ("rbp", "rbp", 1 << 20, ("CW101",)),
    ("r14", "r14", 1 << 40, ("CW101",)),
)  # fmt: skip


def _flipped(bits: int, value: int) -> int:
    return value ^ bits


def _stored() -> Iterator[Fault]:
    for name, field, bits, codes in _STORED_WORDS:
        says = f"{field} of a suspended context is changed where the kernel keeps it"
        apply = partial(change_stored, field, partial(_flipped, bits), codes)
        yield Fault(f"stored-{name}", says, apply, _kernels("", field), workload="spin")
    says = "an XMM register of a suspended thread is changed where the kernel keeps it"
    yield Fault("stored-xmm", says, change_xmm, workload="spin,forks", simd=True)
    for path in (KERNEL, USER):
        says = f"a tracked variable is not what it was when the kernel returns to {path} code"
        yield Fault(f"{path}-tracked", says, partial(change_tracked, path), (64,))
    says = "a tracked variable says user code while kernel code runs, past its entry"
    yield Fault("running-tracked", says, contradict, (64,))
    for name in ("rbx", "rcx", "r10", "r15"):
        yield Fault(
            f"nmi-drop-store-{name}", f"the NMI's entry does not store {name}", partial(drop_store, NMI, name),
            (64,), nmi=True,
        )  # fmt: skip


def _swaps() -> Iterator[Fault]:
    for where in SWAPS:
        skip, double = partial(skip_swapgs, where), partial(double_swapgs, where)
        yield Fault(f"skip-swapgs-{where}", f"the swapgs of the {where} is left out", skip, (64,))
        yield Fault(f"double-swapgs-{where}", f"the swapgs of the {where} is made twice", double, (64,))
    yield Fault("syscall-stale-rsp", "the system call's entry does not store the user's RSP", leave_scratch, (64,))
    for where, (_, _, users) in WINDOWS.items():
        left = " and ".join("RSP" if name == "rsp" else "GS base" for name in sorted(users))
        says = f"an instruction raises an exception with the user's {left}"
        yield Fault(f"except-{where}", says, partial(except_in_window, where), (64,))
    for name, msr, code in (("fs", MSR_FS_BASE, "CW104"), ("gs", MSR_KERNEL_GS_BASE, "CW204")):
        says = f"a switch writes another {name.upper()} base than the thread's"
        apply = partial(change_base, msr, Expect((code,), frozenset({f"{name}_base"})))
        yield Fault(f"switch-{name}-base", says, apply, (64,), workload="bases,spin")


FAULTS: Final = {fault.name: fault for fault in (*_moves(), *_swaps(), *_frames(), *_stored())}
