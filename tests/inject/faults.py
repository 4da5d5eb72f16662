"""The faults: each takes a guest that is held, changes one thing from outside, and says what must be found."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from gdbext.arch import flags as rf
from gdbext.arch.registers import GPR64, MSR_FS_BASE, MSR_KERNEL_GS_BASE, SEGMENTS
from gdbext.code.disasm import Insn
from gdbext.code.operands import Mem, Reg
from gdbext.events.row import How, Kind
from tests.inject import sites
from tests.inject.patch import NOP, SWAPGS, Change, NotHere, drop_word, pop, push
from tests.inject.scene import INTERRUPT, KERNEL, SYSCALL, USER, Expect, Injection, Scene, the
from tests.inject.sites import Move

Apply = Callable[[Scene], Injection]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. ``bits``: kernels it can be in; ``workload``: what shows it on Linux; ``simd``: needs SIMD state."""

    name: str
    says: str
    apply: Apply
    bits: tuple[int, ...] = (64, 32)
    workload: str = "spin,forks,traps"
    simd: bool = False


# one register's store or load


def _drop_store(path: str, name: str, scene: Scene) -> Injection:
    move = the(scene.stores(path), name)
    return Injection(_without_store(scene, move.insn), Expect(_codes(path, name), frozenset({name})))


def _without_store(scene: Scene, insn: Insn) -> Change:
    if insn.name != "push":
        return scene.patch.nop(insn)
    if isinstance(insn.destination, Reg) and insn.destination.name in SEGMENTS:
        return scene.patch.replace(insn.address, b"\x16")  # push ss: a selector, but the kernel's
    other = "rdx" if insn.destination != Reg("rdx", scene.word) else "rsi"
    return scene.patch.replace(insn.address, push(other) + NOP * (insn.size - 1))


def _codes(path: str, name: str) -> tuple[str, ...]:
    if name in SEGMENTS:
        return ("CW103",)
    return ("CW106", "CW101") if path == SYSCALL else ("CW101",)


def _drop_load(path: str, name: str, scene: Scene) -> Injection:
    moves = scene.loads(path)
    move = the(moves, name)
    return Injection(_without_load(scene, move, moves), Expect(_load_codes(path, name, scene), frozenset({name})))


def _load_codes(path: str, name: str, scene: Scene) -> tuple[str, ...]:
    """What may come first: the exit to user code also ends system calls, and in some kernels thread switches."""
    if name in SEGMENTS:
        return ("CW103",)
    codes = ("CW101",) if path == KERNEL else ("CW106",) if path == SYSCALL else ("CW101", "CW106")
    return (*codes, "CW108") if scene.switches_too(path) else codes


def _without_load(scene: Scene, move: Move, moves: list[Move]) -> Change:
    insn = move.insn
    if insn.name != "pop":
        return scene.patch.nop(insn)
    later = [m.field for m in moves if m.insn.address > insn.address and m.insn.name == "pop"]
    spare = [name for name in later if name in GPR64 and len(pop(name)) <= insn.size]
    if spare:  # another register takes the word: its own load comes later
        return scene.patch.replace(insn.address, pop(spare[-1]) + NOP * (insn.size - len(pop(spare[-1]))))
    following = scene.code.insn(insn.end)
    if following is not None and following.raw[:-1] == (b"\x48\x83\xc4" if scene.word == 8 else b"\x83\xc4"):
        more = following.raw[:-1] + bytes([following.raw[-1] + scene.word])
        return scene.patch.replace(insn.address, more + NOP * insn.size)
    return scene.patch.insert(insn.address, drop_word(scene.live.bits), instead_of=1)


# two registers exchanged


def _exchange(moves: list[Move], codes: tuple[str, ...], scene: Scene) -> Injection:
    for first, second in itertools.pairwise(moves):
        alike = first.insn.name == second.insn.name and {first.field, second.field} <= set(GPR64) - {"rax", "rdi"}
        if alike and first.insn.name in ("push", "pop") and first.insn.end == second.insn.address:
            return Injection(
                scene.patch.exchange(first.insn, second.insn), Expect(codes, frozenset({first.field, second.field}))
            )
        if alike and first.insn.name == "mov" and (swapped := _swapped(first.insn, second.insn)):
            change = scene.patch.replace(first.insn.address, swapped)
            return Injection(change, Expect(codes, frozenset({first.field, second.field})))
    raise NotHere("no two neighbours move a register each")


def _swapped(first: Insn, second: Insn) -> bytes:
    """Two ``mov`` with their displacements exchanged, b"" where their encodings differ elsewhere."""
    a, b = first.memory, second.memory
    if a is None or b is None or first.end != second.address or first.size != second.size:
        return b""
    if (a.base, a.index, a.segment) != (b.base, b.index, b.segment):
        return b""
    width = _displacement_bytes(first, a)
    if width != _displacement_bytes(second, b):
        return b""
    return first.raw[:-width] + second.raw[-width:] + second.raw[:-width] + first.raw[-width:]


def _displacement_bytes(insn: Insn, place: Mem) -> int:
    for width in (1, 4):
        if int.from_bytes(insn.raw[-width:], "little", signed=True) == place.disp:
            return width
    return 0


def _exchange_stores(path: str, scene: Scene) -> Injection:
    return _exchange(scene.stores(path), _codes(path, ""), scene)


def _exchange_loads(path: str, scene: Scene) -> Injection:
    return _exchange(scene.loads(path), _load_codes(path, "", scene), scene)


# swapgs

_SWAPS: Final = {
    "syscall-entry": (Kind.ENTRY, (How.SYSCALL,)),
    "interrupt-entry": (Kind.ENTRY, (How.INTERRUPT, How.EXCEPTION)),
    "interrupt-exit": (Kind.EXIT, (How.IRET,)),
    "syscall-exit": (Kind.EXIT, (How.SYSRET,)),
}


def _swapgs(scene: Scene, where: str) -> int:
    kind, hows = _SWAPS[where]
    counts = {at: count for (at, beside, how), count in scene.live.swaps.items() if beside == kind and how in hows}
    if not counts:
        raise NotHere(f"no swapgs of the kind {where} was seen")
    return max(counts, key=counts.__getitem__)


def _skip_swapgs(where: str, scene: Scene) -> Injection:
    change = scene.patch.replace(_swapgs(scene, where), NOP * len(SWAPGS))
    return Injection(change, Expect(("CW202",) if where.endswith("entry") else ("CW201",)))


def _double_swapgs(where: str, scene: Scene) -> Injection:
    change = scene.patch.insert(_swapgs(scene, where), SWAPGS)
    return Injection(change, Expect(("CW203",)))


# what an exit is about to resume

_OFFSETS: Final = {"rip": 0, "cs": 1, "rflags": 2, "rsp": 3, "ss": 4}
"""Words of a hardware frame."""


def _at_exit(scene: Scene, path: str, also: Callable[[], bool] = lambda: True) -> int:
    """Run to such an exit, its address; the vCPU that stands there is the selected one."""
    leaving = scene.leaving(path)

    def wanted(_: int) -> bool:
        if path == SYSCALL:
            return also()
        cs = _frame_word(scene, "cs")
        return (cs & 3 == 3) == (path == USER) and scene.stub.register("rsp") % scene.word == 0 and also()

    def serialises() -> bool:
        return path == KERNEL and _frame_word(scene, "rip") == leaving + 2

    if scene.live.run_to(leaving, lambda cpu: wanted(cpu) and not serialises()) is None:
        raise NotHere(f"no return to {path} code came in time")
    return leaving


def _frame_word(scene: Scene, name: str) -> int:
    return int.from_bytes(_frame(scene, name), "little")


def _frame_address(scene: Scene, name: str) -> int:
    return scene.stub.register("rsp") + _OFFSETS[name] * scene.word


def _frame(scene: Scene, name: str) -> bytes:
    return scene.stub.read(_frame_address(scene, name), scene.word)


def _flags(path: str, bit: int, codes: tuple[str, ...], scene: Scene) -> Injection:
    """Turn one bit of the RFLAGS over that the exit is about to load."""
    leaving = _at_exit(scene, path)
    if path == SYSCALL:
        old = scene.stub.register("r11")
        scene.stub.set_register("r11", old ^ bit)
        what = "R11"
    else:
        old = _frame_word(scene, "rflags")
        scene.stub.write(_frame_address(scene, "rflags"), (old ^ bit).to_bytes(scene.word, "little"))
        what = f"[{_frame_address(scene, 'rflags'):#x}]"
    before, after = (f"{value:#x} ({rf.describe(value)})" for value in (old, old ^ bit))
    change = scene.named(leaving, f"{what} = {before}", after)
    return Injection(change, Expect(codes, frozenset({"rflags"})))


def _frame_value(path: str, name: str, value: Callable[[int], int], expect: Expect, scene: Scene) -> Injection:
    leaving = _at_exit(scene, path)
    address = _frame_address(scene, name)
    old = _frame_word(scene, name)
    new = value(old) & ((1 << 8 * scene.word) - 1)
    scene.stub.write(address, new.to_bytes(scene.word, "little"))
    return Injection(scene.named(leaving, f"[{address:#x}] ({name}) = {old:#x}", f"{new:#x}"), expect)


def _move_rsp(path: str, words: int, scene: Scene) -> Injection:
    leaving = _at_exit(scene, path)
    old = scene.stub.register("rsp")
    scene.stub.set_register("rsp", old + words * scene.word)
    change = scene.named(leaving, f"RSP = {old:#x}", f"{old + words * scene.word:#x}")
    return Injection(change, Expect(("CW301",), frozenset({"rsp"})))


def _register_at_exit(path: str, name: str, codes: tuple[str, ...], scene: Scene) -> Injection:
    """Another value in a register that goes to the resumed context as it stands."""
    leaving = _at_exit(scene, path)
    old = scene.stub.register(name)
    new = (old ^ 0x5A5A000) & ((1 << 8 * scene.word) - 1)
    scene.stub.set_register(name, new)
    column = {"k_gs_base": "kernel_gs_base"}.get(name, name)
    return Injection(scene.named(leaving, f"{name} = {old:#x}", f"{new:#x}"), Expect(codes, frozenset({column})))


# bases at a switch


def _base_at_switch(msr: int, expect: Expect, scene: Scene) -> Injection:
    """Another value in EAX where a base is about to be written."""
    writes = {at: count for (at, number), count in scene.live.bases.items() if number == msr and count > 2}
    if not writes:
        raise NotHere(f"no writes of MSR {msr:#x} were seen")
    at = max(writes, key=writes.__getitem__)

    def wanted(_: int) -> bool:
        return scene.stub.register("rcx") & 0xFFFF_FFFF == msr and scene.stub.register("rax") != 0

    if scene.live.run_to(at, wanted) is None:
        raise NotHere("no switch wrote it in time")
    old = scene.stub.register("rax")
    scene.stub.set_register("rax", old ^ 0x10000)
    return Injection(scene.named(at, f"EAX = {old:#x} (for MSR {msr:#x})", f"{old ^ 0x10000:#x}"), expect)


# thread switches


def _switch(part: str, name: str, scene: Scene) -> Injection:
    pushes, pops = sites.moves_of_switch(scene.code, *scene.live.switches)
    if not pushes:
        raise NotHere("no thread switch was seen to push registers")
    expect = Expect(("CW108",), frozenset({name}))
    if part == "store":
        return Injection(_without_store(scene, the(pushes, name).insn), expect)
    return Injection(_without_load(scene, the(pops, name), pops), expect)


# the catalogue

_SAVED: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
_CALL: Final = ("rbx", "rbp", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r12", "r13", "r14", "r15")
_USER_FLAGS: Final = (
    ("if", rf.IF, ("CW602",)), ("tf", rf.TF, ("CW102",)), ("df", rf.DF, ("CW102",)), ("iopl", rf.IOPL, ("CW603",)),
    ("nt", rf.NT, ("CW603",)), ("ac", rf.AC, ("CW102",)), ("cf", rf.CF, ("CW102",)),
)  # fmt: skip
_KERNEL_FLAGS: Final = (
    ("if", rf.IF, ("CW102",)), ("tf", rf.TF, ("CW102",)), ("df", rf.DF, ("CW102",)), ("iopl", rf.IOPL, ("CW102",)),
    ("nt", rf.NT, ("CW102",)), ("ac", rf.AC, ("CW102",)), ("zf", rf.ZF, ("CW102",)),
)  # fmt: skip


def _wide(name: str) -> tuple[int, ...]:
    return (64,) if name in GPR64[8:] else (64, 32)


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
            bits = (32,) if name in SEGMENTS else _wide(name)
            says = f"the {path} entry does not store {name}"
            yield Fault(f"{path}-drop-store-{name}", says, partial(_drop_store, path, name), bits)
        yield Fault(
            f"{path}-exchange-stores", f"the {path} entry stores two registers in each other's slots",
            partial(_exchange_stores, path),
        )  # fmt: skip
    for path, names in _LOADED:
        for name in names:
            bits = (32,) if name in SEGMENTS else (64,) if path == KERNEL else _wide(name)
            says = f"the exit to {path} code does not load {name}" if path != SYSCALL else f"sysret without {name}"
            yield Fault(f"{path}-drop-load-{name}", says, partial(_drop_load, path, name), bits)
        yield Fault(
            f"{path}-exchange-loads", "two registers are loaded from each other's slots",
            partial(_exchange_loads, path), (64,) if path == KERNEL else (64, 32),
        )  # fmt: skip
    for part, name in itertools.product(("store", "load"), _SWITCHED):
        bits = (32,) if name in ("rsi", "rdi") else _wide(name)
        says = f"the thread switch does not {part} {name}"
        yield Fault(f"switch-drop-{part}-{name}", says, partial(_switch, part, name), bits)


def _frames() -> Iterator[Fault]:
    for path, table in ((USER, _USER_FLAGS), (KERNEL, _KERNEL_FLAGS), (SYSCALL, _USER_FLAGS)):
        for name, bit, codes in table:
            bits = (64,) if path == SYSCALL else (64, 32)
            says = f"{name.upper()} of the saved RFLAGS is turned over in front of a return"
            yield Fault(f"{path}-flag-{name}", says, partial(_flags, path, bit, codes), bits)
    for path in (USER, KERNEL):
        for words, name in ((1, "up"), (-1, "down")):
            says = f"RSP is one word too {'high' if words > 0 else 'low'} at the iret to {path} code"
            yield Fault(f"{path}-rsp-{name}", says, partial(_move_rsp, path, words))
        yield Fault(
            f"{path}-frame-rip", "the saved RIP is another",
            partial(_frame_value, path, "rip", lambda v: v + 1, Expect(("CW101", "CW302"), frozenset({"rip"}))),
        )  # fmt: skip
    yield Fault(
        "user-frame-rsp", "the saved RSP is another",
        partial(_frame_value, USER, "rsp", lambda v: v + 16, Expect(("CW101", "CW302"), frozenset({"rsp"}))),
    )  # fmt: skip
    yield Fault(
        "user-frame-cs", "the saved CS is the kernel's",
        partial(_frame_value, USER, "cs", lambda v: v & ~3, Expect(("CW603",), frozenset({"cs"}))),
    )  # fmt: skip
    yield Fault(
        "user-frame-rip-noncanonical", "the saved RIP is not canonical",
        partial(_frame_value, USER, "rip", lambda v: v | 1 << 62, Expect(("CW601",))), (64,),
    )  # fmt: skip
    yield Fault(
        "user-frame-ss", "the saved SS is a null selector",
        partial(_frame_value, USER, "ss", lambda v: 0, Expect(("CW103", "CW604", "CW603"))),
    )  # fmt: skip
    for path in (USER, SYSCALL):
        for name, code in (("fs_base", "CW104"), ("gs_base", "CW204")):
            says = f"the user's {name} is another at the return"
            yield Fault(f"{path}-{name}", says, partial(_register_at_exit, path, name, (code,)), (64,))
        lost: Names = ("CW101", "CW106") if path == USER else ("CW106",)
        yield Fault(f"{path}-rbx", "RBX is another at the return", partial(_register_at_exit, path, "rbx", lost))
    yield Fault(
        "kernel-gs-base", "the kernel's GS base is another at a return to user code",
        partial(_register_at_exit, USER, "k_gs_base", ("CW205",)), (64,),
    )  # fmt: skip


def _swaps() -> Iterator[Fault]:
    for where in _SWAPS:
        skip, double = partial(_skip_swapgs, where), partial(_double_swapgs, where)
        yield Fault(f"skip-swapgs-{where}", f"the swapgs of the {where} is left out", skip, (64,))
        yield Fault(f"double-swapgs-{where}", f"the swapgs of the {where} is made twice", double, (64,))
    for name, msr, code in (("fs", MSR_FS_BASE, "CW104"), ("gs", MSR_KERNEL_GS_BASE, "CW204")):
        says = f"a switch writes another {name.upper()} base than the thread's"
        apply = partial(_base_at_switch, msr, Expect((code,), frozenset({f"{name}_base"})))
        yield Fault(f"switch-{name}-base", says, apply, (64,), workload="bases,spin")


FAULTS: Final = {fault.name: fault for fault in (*_moves(), *_swaps(), *_frames())}
