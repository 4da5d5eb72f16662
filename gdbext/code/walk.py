"""Running the abstract machine along paths: forks at branches, helpers followed, everything bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gdbext.arch.registers import CALLEE_SAVED_32, CALLEE_SAVED_64, GPR64
from gdbext.code.classify import skips_speculation_trap
from gdbext.code.disasm import Code, Flow, Insn
from gdbext.code.machine import execute
from gdbext.code.operands import Mem, Reg
from gdbext.code.state import State
from gdbext.code.values import Result, Value


class End(Enum):
    """Why a path ended."""

    CALL = "call"  # at a call of compiled code (not made)
    RETURN = "return"  # at a ret to an address that is not known, or to the walk's own caller (made)
    JUMP = "jump"  # at a jump whose target is not known
    EXIT = "exit"  # at an iret, sysret or sysexit (not run)
    STOP = "stop"  # at the address at which the walk was to stop
    LOST = "lost"  # bounds reached, undecodable bytes


@dataclass(slots=True)
class Path:
    """One path: the state at its end, the address of the instruction it ended at, and why."""

    state: State
    address: int
    end: End


@dataclass(frozen=True, slots=True)
class Bounds:
    """``steps``: instructions on one path; ``paths``: in all; ``visits``: of one instruction on one path."""

    steps: int = 400
    paths: int = 48
    visits: int = 2


_HELPER: Final = Bounds(steps=200, paths=8)
_HELPER_DEPTH: Final = 2

Keep = Callable[[int], bool]
"""Tells whether a path may go to an address."""


class Walker:
    """Walks over `code`. ``stop``: addresses at which paths end; ``keep``: where they may go (default: anywhere);
    ``through``: go on behind calls of compiled code, on what the ABI promises of them."""

    def __init__(
        self,
        code: Code,
        bounds: Bounds | None = None,
        stop: frozenset[int] = frozenset(),
        keep: Keep | None = None,
        through: bool = False,
    ) -> None:
        self.code = code
        self.bounds = bounds or Bounds()
        self.stop = stop
        self.keep = keep
        self.through = through

    def run(self, address: int, state: State, helpers: int = _HELPER_DEPTH) -> Iterator[Path]:
        """All paths from `address` in `state`, nearest branches first; ``helpers``: calls of helpers to follow."""
        work: list[tuple[int, State, int, dict[int, int]]] = [(address, state, 0, {})]
        found = 0
        while work and found < self.bounds.paths:
            path = self._straight(*work.pop(), work, helpers)
            if path is not None:
                found += 1
                yield path

    def _straight(
        self,
        address: int,
        state: State,
        steps: int,
        visits: dict[int, int],
        work: list[tuple[int, State, int, dict[int, int]]],
        helpers: int,
    ) -> Path | None:
        """Follow one path to its end, leaving the other sides of its branches in `work`."""
        while True:
            insn = self.code.insn(address)
            if address in self.stop:
                return Path(state, address, End.STOP)
            visits[address] = visits.get(address, 0) + 1
            if insn is None or steps >= self.bounds.steps or visits[address] > self.bounds.visits:
                return Path(state, address, End.LOST)
            steps += 1
            ended, following = self._next(insn, state, helpers)
            if ended is not None:
                return Path(state, address, ended)
            allowed = [(a, s) for a, s in following if self.keep is None or self.keep(a)]
            if not allowed:
                return None
            for other, its_state in reversed(allowed[1:]):
                if len(work) < self.bounds.paths:
                    work.append((other, its_state, steps, dict(visits)))
            address, state = allowed[0]

    def _next(self, insn: Insn, state: State, helpers: int) -> tuple[End | None, list[tuple[int, State]]]:
        """(why the path ends here, or None; where it goes on in which states)."""
        flow = insn.flow
        if flow is Flow.EXIT:
            return End.EXIT, []
        if flow is Flow.STOP or _moves_the_stack_unseen(insn, state):
            return End.LOST, []
        if flow is Flow.NEXT:
            execute(state, insn, self.code)
            return None, [(insn.end, state)]
        if flow is Flow.BRANCH:
            return None, _branches(insn, state)
        if flow is Flow.RETURN:
            target = state.load(state.stack_place(), state.word).constant
            execute(state, insn, self.code)
            return (End.RETURN, []) if target is None else (None, [(target, state)])
        target = _target(self.code, insn, state)
        if flow is Flow.JUMP:
            return (End.JUMP, []) if target is None else (None, [(target, state)])
        return self._call(insn, target, state, helpers)

    def _call(
        self, insn: Insn, target: int | None, state: State, helpers: int
    ) -> tuple[End | None, list[tuple[int, State]]]:
        inline = target is not None and (target == insn.end or skips_speculation_trap(self.code, insn.end, target))
        if target is not None and (inline or (self.keep is not None and self.keep(target))):
            execute(state, insn, self.code)
            return None, [(target, state)]
        if target is not None and helpers > 0:
            after = self._helper(insn, target, state, helpers)
            if after:
                return None, [(insn.end, s) for s in after]
        if self.through or helpers < _HELPER_DEPTH:  # the latter: compiled code called from within a helper
            forget_scratch(state, insn.address)
            if self.through:
                top = state.stack_place()
                state.called_on.add((top.segment, top.atom))
                _forget_arguments(state, insn.address)
            return None, [(insn.end, state)]
        return End.CALL, []

    def _helper(self, insn: Insn, target: int, state: State, helpers: int) -> list[State]:
        """The states in which the function at `target` returns, if it is a helper of the entry code: one that leaves
        registers of the interrupted context in memory; else nothing."""
        if self.code.insn(target) is None:
            return []
        before = _saved(state)
        inner = state.copy()
        execute(inner, insn, self.code)
        walker = Walker(self.code, _HELPER, frozenset({insn.end}), self.keep)
        states = []
        for path in walker.run(target, inner, helpers - 1):
            if path.end is not End.STOP:
                continue
            if not _saved(path.state) - before:
                return []
            states.append(path.state)
        return states


def forget_scratch(state: State, address: int) -> None:
    """What a call at `address` of compiled code leaves: callee-saved registers, RSP and memory stay."""
    kept = {"rsp", *(CALLEE_SAVED_64 if state.bits == 64 else CALLEE_SAVED_32)}
    for name in GPR64:
        if name not in kept:
            state.regs[name] = Value(Result(address, name))


def _forget_arguments(state: State, address: int) -> None:
    """Words on the stack that are none of the interrupted context's may be results of the call at `address`."""
    top = state.stack_place()
    region = state.memory.get((top.segment, top.atom), {})
    for disp, (size, value) in region.items():
        if not value.context:
            region[disp] = (size, Value(Result(address, f"stack word {disp - top.disp:#x}")))


def _saved(state: State) -> set[str]:
    return {field for _, _, value in state.stored() if (field := value.context)}


_ON_ZERO: Final = {"je": True, "jne": False, "jae": True, "jb": False}
"""Branches that tell user from kernel after a test of the saved CS: taken if the operands are equal (as privilege
levels compared with 3: not below)."""


def _branches(insn: Insn, state: State) -> list[tuple[int, State]]:
    """Both sides of a branch, but for a test whose outcome is known: of a constant, or of the saved CS once more."""
    sides = [insn.end] if insn.target is None else [insn.end, insn.target]
    if state.zero is not None and insn.name in ("je", "jne") and len(sides) == 2:
        return [(sides[state.zero is (insn.name == "je")], state)]
    taken_if_zero = _ON_ZERO.get(insn.name) if state.if_zero else None
    if insn.name in ("jae", "jb") and state.if_zero != "user":
        taken_if_zero = None
    if taken_if_zero is None or len(sides) < 2:
        return [(side, state if i == 0 else state.copy()) for i, side in enumerate(sides)]
    other = "user" if state.if_zero == "kernel" else "kernel"
    origins = (other, state.if_zero) if taken_if_zero else (state.if_zero, other)
    result = []
    for side, origin in zip(sides, origins, strict=True):
        if state.origin in ("", origin):
            copy = state.copy()
            copy.origin = origin
            result.append((side, copy))
    return result


def _moves_the_stack_unseen(insn: Insn, state: State) -> bool:
    """True for ``lss`` and for a copy of unknown length: 32-bit Linux leaves its 16-bit stacks by the one, and by the
    other those on which it enters. What lies on the stack afterwards is not known."""
    return insn.name == "lss" or (
        insn.mnemonic.startswith("rep") and insn.name.startswith("movs") and state.regs["rcx"].constant is None
    )


def _target(code: Code, insn: Insn, state: State) -> int | None:
    """Where a jump or call goes, directly or by a value that is known."""
    if insn.target is not None:
        return insn.target
    operand = insn.destination
    if isinstance(operand, Reg):
        return state.regs.get(operand.name, Value(Result(0, ""))).constant
    if isinstance(operand, Mem) and operand.constant and not operand.segment:
        return code.pointer_at(operand.disp)
    return None
