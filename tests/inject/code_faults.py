"""Faults in code: a store, a load or a swapgs of an entry or exit path left out, exchanged or doubled."""

from __future__ import annotations

import itertools
from typing import Final

from gdbext.arch.registers import GPR64, SEGMENTS
from gdbext.code.disasm import Insn
from gdbext.code.operands import Mem, Reg
from gdbext.events.row import How, Kind
from tests.inject import sites
from tests.inject.patch import NOP, SWAPGS, Change, NotHere, drop_word, pop, push
from tests.inject.scene import KERNEL, SYSCALL, Expect, Injection, Scene, the
from tests.inject.sites import Move


def drop_store(path: str, name: str, scene: Scene) -> Injection:
    move = the(scene.stores(path), name)
    by_sysenter = path == SYSCALL and scene.word == 4 and name == "rbp"
    lost = "rsp" if by_sysenter else name  # sysenter keeps no ESP: its caller's comes in EBP
    return Injection(_without_store(scene, move.insn), Expect(_codes(path, name), frozenset({lost})))


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


def drop_load(path: str, name: str, scene: Scene) -> Injection:
    moves = scene.loads(path)
    move = the(moves, name)
    return Injection(_without_load(scene, move, moves), Expect(_load_codes(path, name, scene), frozenset({name})))


def _load_codes(path: str, name: str, scene: Scene) -> tuple[str, ...]:
    """What may come first: the exit to user code also ends system calls, and in some kernels thread switches."""
    if name in SEGMENTS:
        return ("CW103",)
    codes = ("CW101",) if path == KERNEL else ("CW106",) if path == SYSCALL else ("CW101", "CW106")
    return (*codes, "CW108") if scene.switches_too(path) else codes


def _without_load(scene: Scene, move: Move, moves: list[Move], scratch: str = "") -> Change:
    """Leave `move` out; ``scratch``: a register that nobody misses at the end of this path."""
    insn = move.insn
    if insn.name != "pop":
        return scene.patch.nop(insn)
    later = [m.field for m in moves if m.insn.address > insn.address and m.insn.name == "pop"]
    spare = [name for name in later if name in GPR64 and len(pop(name)) <= insn.size]
    if spare:  # another register takes the word: its own load comes later
        return scene.patch.replace(insn.address, pop(spare[-1]) + NOP * (insn.size - len(pop(spare[-1]))))
    if scratch:
        return scene.patch.replace(insn.address, pop(scratch) + NOP * (insn.size - 1))
    following = scene.code.insn(insn.end)
    if following is not None and following.raw[:-1] == (b"\x48\x83\xc4" if scene.word == 8 else b"\x83\xc4"):
        more = following.raw[:-1] + bytes([following.raw[-1] + scene.word])
        return scene.patch.replace(insn.address, more + NOP * insn.size)
    return scene.patch.insert(insn.address, drop_word(scene.live.bits), instead_of=1)


# two registers exchanged


def _exchange(path: str, moves: list[Move], codes: tuple[str, ...], scene: Scene) -> Injection:
    """Let the first two neighbours that move a register each do it in each other's place."""
    moved = set(GPR64) - ({"rax", "rdi"} if scene.word == 8 else {"rax"})
    if path == SYSCALL and scene.word == 4:
        moved -= {"rcx", "rdx", "rbp"}  # sysexit's RSP and RIP, and where sysenter's caller keeps its RSP
    for first, second in itertools.pairwise(moves):
        alike = first.insn.name == second.insn.name and {first.field, second.field} <= moved
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


def exchange_stores(path: str, scene: Scene) -> Injection:
    return _exchange(path, scene.stores(path), _codes(path, ""), scene)


def exchange_loads(path: str, scene: Scene) -> Injection:
    return _exchange(path, scene.loads(path), _load_codes(path, "", scene), scene)


# thread switches


def drop_in_switch(part: str, name: str, scene: Scene) -> Injection:
    pushes, pops = sites.moves_of_switch(scene.code, *scene.live.switches)
    if not pushes:
        raise NotHere("no thread switch was seen to push registers")
    expect = Expect(("CW108",), frozenset({name}))
    if part == "store":
        return Injection(_without_store(scene, the(pushes, name).insn), expect)
    return Injection(_without_load(scene, the(pops, name), pops, "rcx"), expect)


# swapgs

SWAPS: Final = {
    "syscall-entry": (Kind.ENTRY, (How.SYSCALL,)),
    "interrupt-entry": (Kind.ENTRY, (How.INTERRUPT, How.EXCEPTION)),
    "interrupt-exit": (Kind.EXIT, (How.IRET,)),
    "syscall-exit": (Kind.EXIT, (How.SYSRET,)),
}


def _swapgs(scene: Scene, where: str) -> int:
    kind, hows = SWAPS[where]
    counts = {at: count for (at, beside, how), count in scene.live.swaps.items() if beside == kind and how in hows}
    if not counts:
        raise NotHere(f"no swapgs of the kind {where} was seen")
    return max(counts, key=counts.__getitem__)


def skip_swapgs(where: str, scene: Scene) -> Injection:
    change = scene.patch.replace(_swapgs(scene, where), NOP * len(SWAPGS))
    return Injection(change, Expect(("CW202",) if where.endswith("entry") else ("CW201",)))


def double_swapgs(where: str, scene: Scene) -> Injection:
    change = scene.patch.insert(_swapgs(scene, where), SWAPGS)
    return Injection(change, Expect(("CW203",)))


def leave_scratch(scene: Scene) -> Injection:
    """Let the system call's entry leave the RSP of an earlier call in the scratch from which the way back takes it."""
    store = scene.code.insn(_swapgs(scene, "syscall-entry") + len(SWAPGS))
    kept = store.memory if store is not None and store.name == "mov" else None
    if store is None or kept is None or kept.segment != "gs":
        raise NotHere("RSP is not stored behind the swapgs")
    return Injection(scene.patch.nop(store), Expect(("CW106", "CW107"), frozenset({"rsp"})))


# exceptions in windows

_UD2: Final = b"\x0f\x0b"
_BOTH: Final = frozenset({"rsp", "gs_base"})
WINDOWS: Final[dict[str, tuple[str, bool, frozenset[str]]]] = {
    "first-of-syscall": ("syscall-entry", False, _BOTH),
    "before-the-stack": ("syscall-entry", True, frozenset({"rsp"})),
    "before-sysret": ("syscall-exit", True, _BOTH),
    "before-iret": ("interrupt-exit", True, frozenset({"gs_base"})),
}
"""Where an exception comes in a window: at a swapgs or behind it, and what is still, or again, the user's there."""


def except_in_window(name: str, scene: Scene) -> Injection:
    """Let an instruction in a window raise an exception whose handler trusts CS, and has no stack of its own."""
    where, behind, users = WINDOWS[name]
    at = _swapgs(scene, where)
    change = scene.patch.replace(at + behind * len(SWAPGS), _UD2)
    return Injection(change, Expect(("CW501",), users, alone=True))
