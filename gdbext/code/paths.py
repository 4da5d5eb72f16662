"""What the entry points of a guest reach: recursive descent over direct control flow.

:func:`explore` starts at handlers and system-call entries, follows jumps, branches and calls, nearest first, and
notes every instruction that matters to contexts: the exits, ``swapgs``, writes of MSRs and bases, stack switches.
What it could not follow (an indirect call through a table) it names: "not seen" must not pass for "not there".
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from gdbext.arch.vectors import UNKNOWN
from gdbext.code.classify import (
    constant_of,
    pushed_constant,
    shadows_interrupts,
    skips_speculation_trap,
    stores_stack_pointer,
    takes_stack_pointer,
)
from gdbext.code.disasm import Code, Flow, Insn
from gdbext.code.operands import Mem, Reg
from gdbext.code.switches import SwitchFunction, switch_after, switch_entry


class Gateway(Enum):
    """How an entry is reached."""

    INTERRUPT = "interrupt"  # through an IDT gate: interrupts, exceptions, NMI, int n
    SYSCALL = "syscall"
    SYSENTER = "sysenter"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry point. ``address``: guest virtual; ``vector``: as in gdbext.arch.vectors; ``ist``: 0, or the gate's
    IST index; ``error_code``: the CPU pushes one (None: as the vector says); ``soft``: a gate for system calls by
    ``int n``, which may change RAX."""

    address: int
    gateway: Gateway = Gateway.INTERRUPT
    vector: int = UNKNOWN
    ist: int = 0
    error_code: bool | None = None
    soft: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of an exploration. ``instructions`` in all; ``calls``: depth of calls followed; ``stretch``: instructions
    in one straight run, against data read as code."""

    instructions: int = 120_000
    calls: int = 6
    stretch: int = 2_000


@dataclass(frozen=True, slots=True)
class Exit:
    """An instruction that resumes a context. ``how``: ``iret``, ``sysret`` or ``sysexit``; ``word``: operand size in
    bytes (2, 4, 8; for sysret and sysexit 8 means to 64-bit code); ``to_itself``: an ``iret`` to the next instruction,
    used to serialise."""

    address: int
    how: str
    word: int
    to_itself: bool


@dataclass(frozen=True, slots=True)
class MsrAccess:
    """``rdmsr`` or ``wrmsr``, or ``rd/wr fs/gs base``. ``msr``: number, or None if ECX is not a nearby constant."""

    address: int
    name: str
    msr: int | None


@dataclass(frozen=True, slots=True)
class Indirect:
    """A jump or call whose target is not known from the bytes."""

    address: int
    call: bool


@dataclass(slots=True)
class Reach:
    """What an exploration found. All addresses are guest virtual, all lists in order of address.

    ``successors``: for each instruction seen, where control goes next within the function (a call: the instruction
    after it, but see skips_speculation_trap); ``calls``: call instruction → target; ``function_of``:
    instruction → start of the function through which it was first reached (tail jumps keep the caller's);
    ``depth_of``: function start → calls from an entry. ``shadows``: instructions that hold interrupts off for one
    more.
    """

    entries: tuple[Entry, ...]
    exits: list[Exit] = field(default_factory=list)
    swapgs: list[int] = field(default_factory=list)
    msrs: list[MsrAccess] = field(default_factory=list)
    lidt: list[int] = field(default_factory=list)
    shadows: list[int] = field(default_factory=list)
    switch_functions: list[SwitchFunction] = field(default_factory=list)
    indirect: list[Indirect] = field(default_factory=list)
    successors: dict[int, tuple[int, ...]] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)
    function_of: dict[int, int] = field(default_factory=dict)
    depth_of: dict[int, int] = field(default_factory=dict)

    def depth(self, address: int) -> int:
        """Calls between an entry and the instruction at `address` (which was seen)."""
        return self.depth_of[self.function_of[address]]


def explore(code: Code, entries: Iterable[int | Entry], limits: Limits | None = None) -> Reach:
    """Follow `entries` within `limits`; what is fewest calls away from an entry is found first. Never raises for
    anything the guest's bytes may hold."""
    points = tuple(e if isinstance(e, Entry) else Entry(e) for e in entries)
    return _Explorer(code, Reach(points), limits or Limits()).run()


_BASE_ACCESS: Final = frozenset({"rdfsbase", "rdgsbase", "wrfsbase", "wrgsbase"})
_WORDS: Final = {
    "iret": 2, "iretd": 4, "iretq": 8, "sysret": 4, "sysretq": 8, "sysexit": 4, "sysexitq": 8,
}  # fmt: skip
_PUT_AWAY: Final = 16
"""Instructions behind the one that copies RSP in which the copy is stored."""
_ZEROES: Final = b"\0\0"
"""``add [rax], al``: what zeroed memory decodes to."""


class _Explorer:
    """One exploration: a queue of (call depth, order, address, function), walked run by run."""

    def __init__(self, code: Code, reach: Reach, limits: Limits) -> None:
        self.code = code
        self.reach = reach
        self.limits = limits
        self.queue: list[tuple[int, int, int, int]] = []
        self.order = 0
        self.rsp_stores: list[int] = []

    def run(self) -> Reach:
        for entry in self.reach.entries:
            self._push(0, entry.address, entry.address)
        while self.queue:
            depth, _, address, function = heapq.heappop(self.queue)
            if len(self.reach.successors) >= self.limits.instructions:
                break
            self._run(address, function, depth)
        self._finish()
        return self.reach

    def _push(self, depth: int, address: int, function: int) -> None:
        if address in self.reach.successors or depth > self.limits.calls:
            return
        self.order += 1
        heapq.heappush(self.queue, (depth, self.order, address, function))

    def _run(self, address: int, function: int, depth: int) -> None:
        """Walk straight on from `address` until control leaves or meets what is already seen."""
        reach = self.reach
        reach.depth_of.setdefault(function, depth)
        past: list[Insn] = []
        for _ in range(self.limits.stretch):
            if address in reach.successors:
                return
            insn = self.code.insn(address)
            if insn is None or (insn.raw == _ZEROES and past and past[-1].raw == _ZEROES):
                return
            reach.function_of[address] = function
            following = self._follow(insn, past, function, depth)
            reach.successors[address] = following
            self._note(insn, past)
            for target in following:
                if target != insn.end:
                    self._push(depth, target, function)
            if insn.end not in following:
                return
            past.append(insn)
            address = insn.end
        self._push(depth, address, function)

    def _follow(self, insn: Insn, past: list[Insn], function: int, depth: int) -> tuple[int, ...]:
        """Successors of `insn` within its function; calls are queued one level deeper."""
        flow, target = insn.flow, insn.target
        if flow is Flow.NEXT:
            return (insn.end,)
        if flow is Flow.BRANCH:
            return (insn.end,) if target is None else (insn.end, target)
        if flow in (Flow.STOP, Flow.EXIT):
            return ()
        if flow is Flow.RETURN:
            constant = pushed_constant(past, self.code.bits)
            return () if constant is None else (constant,)
        if target is None:
            target = self._resolve(insn, past)
        if flow is Flow.JUMP:
            return () if target is None else (target,)
        if target is None or target == insn.end:
            return (insn.end,)
        if skips_speculation_trap(self.code, insn.end, target):
            return (target,)
        self.reach.calls[insn.address] = target
        self._push(depth + 1, target, target)
        return (insn.end,)

    def _resolve(self, insn: Insn, past: list[Insn]) -> int | None:
        """The target of an indirect jump or call where a constant just loaded, or constant memory, gives it."""
        operand = insn.destination
        target = None
        if isinstance(operand, Reg):
            target = constant_of(operand.name, past)
        elif isinstance(operand, Mem) and operand.constant and not operand.segment and operand.size == self.code.word:
            target = self.code.pointer_at(operand.disp)
        if target is None or self.code.insn(target) is None:
            self.reach.indirect.append(Indirect(insn.address, insn.flow is Flow.CALL))
            return None
        return target

    def _note(self, insn: Insn, past: list[Insn]) -> None:
        """Put `insn` on the lists it belongs to."""
        reach, name = self.reach, insn.name
        if insn.flow is Flow.EXIT:
            how = "iret" if name.startswith("iret") else "sysret" if name.startswith("sysret") else "sysexit"
            to_itself = how == "iret" and pushed_constant(past, self.code.bits) == insn.end
            reach.exits.append(Exit(insn.address, how, _WORDS[name], to_itself))
        elif name == "swapgs":
            reach.swapgs.append(insn.address)
        elif name in ("wrmsr", "rdmsr"):
            reach.msrs.append(MsrAccess(insn.address, name, constant_of("rcx", past)))
        elif name in _BASE_ACCESS:
            reach.msrs.append(MsrAccess(insn.address, name, None))
        elif name == "lidt":
            reach.lidt.append(insn.address)
        elif shadows_interrupts(insn):
            reach.shadows.append(insn.address)
        elif "sp" in insn.op_str and (stores_stack_pointer(insn) or self._is_put_away(insn)):
            self.rsp_stores.append(insn.address)

    def _is_put_away(self, insn: Insn) -> bool:
        """True if `insn` sets a register to RSP that is then stored in memory off the stack."""
        register, end = takes_stack_pointer(insn), insn.end
        for _ in range(_PUT_AWAY if register else 0):
            following = self.code.insn(end)
            if following is None or following.flow is not Flow.NEXT or following.writes_register(register):
                return False
            target, end = following.destination, following.end
            if following.name != "mov" or not isinstance(target, Mem) or target.base in ("rsp", "rbp"):
                continue
            if isinstance(following.source, Reg) and following.source.name == register:
                return True
        return False

    def _finish(self) -> None:
        """Put the lists in order of address and look for thread switches among the functions met."""
        reach = self.reach
        entries = {entry.address for entry in reach.entries}
        for store in self.rsp_stores:
            function = reach.function_of[store]
            if function in entries:
                continue
            found = switch_after(self.code, reach, store, switch_entry(self.code, reach, store, function))
            if found:
                reach.switch_functions.append(found)
        for addresses in (reach.swapgs, reach.lidt, reach.shadows):
            addresses.sort()
        for items in (reach.exits, reach.msrs, reach.indirect):
            items.sort(key=lambda item: item.address)
        reach.switch_functions.sort(key=lambda item: item.entry)
