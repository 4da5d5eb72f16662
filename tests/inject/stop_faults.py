"""Faults at a stop: the guest stands in front of an exit or a base write, and a register or frame word is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gdbext.arch import flags as rf
from gdbext.arch.registers import MSR_FS_BASE
from gdbext.ledger.compare import is_call, is_user
from gdbext.profiles.expression import Expression, Scope
from gdbext.rules.policy import Tracked
from tests.inject.patch import NotHere, TooLate
from tests.inject.scene import KERNEL, SYSCALL, USER, Expect, Injection, Scene

_OFFSETS: Final = {"rip": 0, "cs": 1, "rflags": 2, "rsp": 3, "ss": 4}
"""Words of a hardware frame."""
_TIMES: Final = 4
_STEPS: Final = 5000
"""From a switch to the user code of the thread that was switched to, with much to spare: instructions."""
_PATIENCE: Final = 25.0
"""Seconds in which a base write must come; the guest stands before every one for milliseconds."""


def run_to_exit(scene: Scene, path: str) -> int:
    """Run to such an exit, its address; the vCPU that stands there is the selected one. Raises NotHere.

    An iret is one that resumes what an interrupt interrupted: of a new context nobody knows what it should be, and
    what raised an exception the kernel may send elsewhere. A sysret likewise ends a call that waits.
    """
    leaving = scene.leaving(path)

    def wanted(_: int) -> bool:
        if path == SYSCALL:
            return scene.word == 4 or _ends_a_call(scene)
        serialises = path == KERNEL and _frame_word(scene, "rip") == leaving + 2
        if (_frame_word(scene, "cs") & 3 == 3) != (path == USER) or serialises:
            return False
        scene.live.catch_up()
        waiting = scene.live.engine.pending()
        resumed = (waiting["rip"] == _frame_word(scene, "rip")) & ~is_call(waiting) & (waiting["vector"] >= 32)
        here = waiting["frame"] == scene.stub.register("rsp")
        if path == USER or scene.word == 8:  # the frame holds an RSP
            here = waiting["rsp"] == _frame_word(scene, "rsp")
        return bool((resumed & here).any())

    if scene.live.run_to(leaving, wanted) is None:
        raise TooLate(f"no return to {path} code came in time")
    return leaving


def _ends_a_call(scene: Scene) -> bool:
    """True in front of a sysret that ends a call which was seen, and does not begin a program."""
    scene.live.catch_up()
    waiting = scene.live.engine.pending()
    here = (waiting["rip"] == scene.stub.register("rcx")) & (waiting["rsp"] == scene.stub.register("rsp"))
    return bool((here & is_call(waiting)).any())


def _frame_address(scene: Scene, name: str) -> int:
    return scene.stub.register("rsp") + _OFFSETS[name] * scene.word


def _frame_word(scene: Scene, name: str) -> int:
    return int.from_bytes(scene.stub.read(_frame_address(scene, name), scene.word), "little")


def turn_flag(path: str, bit: int, codes: tuple[str, ...], scene: Scene) -> Injection:
    """Turn one bit of the RFLAGS over that the exit is about to load."""
    leaving = run_to_exit(scene, path)
    if path == SYSCALL:
        old = scene.stub.register("r11")
        scene.stub.set_register("r11", old ^ bit)
        what = "R11"
    else:
        address, old = _frame_address(scene, "rflags"), _frame_word(scene, "rflags")
        scene.stub.write(address, (old ^ bit).to_bytes(scene.word, "little"))
        what = f"[{address:#x}] (rflags)"
    before, after = (f"{value:#x} ({rf.describe(value)})" for value in (old, old ^ bit))
    change = scene.named(leaving, f"{what} = {before}", after)
    return Injection(change, Expect(codes, frozenset({"rflags"})))


def change_frame(path: str, name: str, value: Callable[[int], int], expect: Expect, scene: Scene) -> Injection:
    leaving = run_to_exit(scene, path)
    address = _frame_address(scene, name)
    old = _frame_word(scene, name)
    new = value(old) & ((1 << 8 * scene.word) - 1)
    scene.stub.write(address, new.to_bytes(scene.word, "little"))
    return Injection(scene.named(leaving, f"[{address:#x}] ({name}) = {old:#x}", f"{new:#x}"), expect)


def move_rsp(path: str, words: int, scene: Scene) -> Injection:
    leaving = run_to_exit(scene, path)
    old = scene.stub.register("rsp")
    scene.stub.set_register("rsp", old + words * scene.word)
    change = scene.named(leaving, f"RSP = {old:#x}", f"{old + words * scene.word:#x}")
    return Injection(change, Expect(("CW301",), frozenset({"rsp"})))


def change_register(path: str, name: str, bits: int, codes: tuple[str, ...], scene: Scene) -> Injection:
    """Turn `bits` over in a register that goes to the resumed context as it stands."""
    leaving = run_to_exit(scene, path)
    old = scene.stub.register(name)
    new = (old ^ bits) & ((1 << 8 * scene.word) - 1)
    scene.stub.set_register(name, new)
    column = {"k_gs_base": "kernel_gs_base"}.get(name, name)
    return Injection(scene.named(leaving, f"{name} = {old:#x}", f"{new:#x}"), Expect(codes, frozenset({column})))


def change_tracked(path: str, scene: Scene) -> Injection:
    """Leave a tracked variable of the guest's profile other than it was at the entry."""
    variable = _tracked(scene)
    leaving = run_to_exit(scene, path)
    changed = _write_tracked(scene, "gs_base" if path == KERNEL else "k_gs_base", lambda value: value ^ 2)
    return Injection(scene.named(leaving, *changed), Expect(("CW701", "CW702"), frozenset({variable.name})))


def contradict(scene: Scene) -> Injection:
    """Let a tracked variable say that user code runs, while kernel code does, with interrupts on."""
    variable = _tracked(scene)
    said = next((must.value for must in variable.implications if must.in_user and must.equal), None)
    if said is None:
        raise NotHere("what its profile tracks says nothing of user code")
    run_to_exit(scene, KERNEL)
    scene.stub.step(scene.stub.selected)  # what an interrupt interrupted goes on
    changed = _write_tracked(scene, "gs_base", lambda value: value & ~variable.mask | said)
    return Injection(scene.named(scene.stub.register("rip"), *changed), Expect(("CW702",), frozenset({variable.name})))


def _tracked(scene: Scene) -> Tracked:
    variable = next(iter(scene.live.knowledge.policy.tracked), None)
    if variable is None:
        raise NotHere("its profile tracks no variable")
    return variable


def _write_tracked(scene: Scene, base: str, value: Callable[[int], int]) -> tuple[str, str]:
    """Change the tracked variable of the CPU that stands; the kernel's GS base is in the register `base`."""
    table = scene.live.profile.data.tracked[0]
    names = Scope({"gs_base": scene.stub.register(base)}, scene.live.symbols.address, scene.read)
    address = Expression(table.address).evaluate(names)
    old = int.from_bytes(scene.stub.read(address, table.size), "little")
    scene.stub.write(address, value(old).to_bytes(table.size, "little"))
    return f"{table.name} = {old:#x}", f"{value(old):#x}"


def change_base(msr: int, expect: Expect, scene: Scene) -> Injection:
    """Another value in EAX where a base is about to be written for a thread that then comes to its user code; one that
    is switched away again before that has its base written anew."""
    writes = {at: count for (at, number), count in scene.live.bases.items() if number == msr and count > 2}
    if not writes:
        raise NotHere(f"no writes of MSR {msr:#x} were seen")
    at = max(writes, key=writes.__getitem__)

    column = "fs_base" if msr == MSR_FS_BASE else "gs_base"

    def wanted(_: int) -> bool:
        """For a thread whose interrupted user code is about to go on: not for a system call that sets the base."""
        value = scene.stub.register("rdx") << 32 | scene.stub.register("rax") & 0xFFFF_FFFF
        if scene.stub.register("rcx") & 0xFFFF_FFFF != msr or not value:
            return False
        scene.live.catch_up()
        waiting = scene.live.engine.pending()
        last = waiting[-1:]
        if len(last) and is_call(last)[0] and last["seq"][0] > scene.live.last_switch:
            return False
        fit = is_user(waiting) & ~is_call(waiting) & (waiting[column] == value)
        return bool((fit & (waiting["cr3"] >> 12 == scene.stub.register("cr3") >> 12)).any())

    changed = None
    for _ in range(_TIMES):
        if scene.live.errors or scene.live.run_to(at, wanted, _PATIENCE) is None:
            break
        old = scene.stub.register("rax")
        scene.stub.set_register("rax", old ^ 0x10000)
        changed = scene.named(at, f"EAX = {old:#x} (for MSR {msr:#x})", f"{old ^ 0x10000:#x}")
        if _comes_to_user_code(scene):
            break
    if changed is None:
        raise TooLate("no switch wrote it in time")
    return Injection(changed, expect)


def _comes_to_user_code(scene: Scene) -> bool:
    """Step up to user code. No timer takes the thread away meanwhile, as it does on a busy host, where a stop costs a
    guest more of its time than a time slice has."""
    for _ in range(_STEPS):
        if scene.stub.register("cs") & 3 == 3:
            return True
        scene.stub.step(scene.stub.selected)
    return False
