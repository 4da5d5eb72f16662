"""Whether functions keep registers for their callers, as the psABIs have it, or none does, as in Plan 9's code or Go's.

A function keeps a register that it stores before it writes it and loads again on its way to a return; one that
calculates in it without having stored it does not. Hand-written helpers do as they like (they restore a context, or
clear registers), so that only what nearly all functions do is taken for the convention.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from gdbext.arch.registers import CALLEE_SAVED_32, CALLEE_SAVED_64
from gdbext.code.classify import stack_source
from gdbext.code.disasm import Code, Flow, Insn
from gdbext.code.operands import Mem, Reg
from gdbext.code.paths import Reach

LEAST: Final = 2
"""Functions that calculate in such registers, from which on they say something."""
TIMES: Final = 4
"""So many times more they must be than those that keep them."""
_FUNCTIONS: Final = 400
_STATES: Final = 400
"""Functions looked at, and steps in each."""
_EPILOGUE: Final = 12
"""Instructions between the load of a kept register and the return, at most."""
_READS: Final = frozenset({"cmp", "test", "push", "bt", "mul", "div", "idiv", "nop", "call", "jmp"})
"""Instructions that leave their first operand as it is."""


def keeps_none(code: Code, reach: Reach) -> bool:
    """True if the functions called in `reach` keep no register for their callers."""
    saved = frozenset(CALLEE_SAVED_64 if code.bits == 64 else CALLEE_SAVED_32) - {"rbp"}
    keep = lose = 0
    for start in sorted(set(reach.calls.values()))[:_FUNCTIONS]:
        uses = _uses(code, reach, start, saved)
        keep += uses.keeps
        lose += uses.loses and not uses.keeps
    return lose >= LEAST and lose > TIMES * keep


@dataclass(frozen=True, slots=True)
class _Uses:
    """What a function does with registers that a convention may have it keep."""

    keeps: bool = False
    loses: bool = False


def _uses(code: Code, reach: Reach, start: int, saved: frozenset[str]) -> _Uses:
    stored: set[str] = set()
    lost: set[int] = set()
    loaded: set[tuple[str, int]] = set()
    first = (start, frozenset[str]())
    seen, work = {first}, deque([first])
    for _ in range(_STATES):
        if not work:
            break
        address, touched = work.popleft()
        insn = code.insn(address)
        if insn is None:
            continue
        if stack_source(insn) in ("memory", "register"):
            return _Uses()  # it goes to another stack: a thread switch
        name = _stores(insn)
        if name in saved and name not in touched:
            stored.add(name)
        written = name or _writes(insn)
        if written in saved:
            if not name and _loads(insn):
                loaded.add((written, insn.end))
            elif not name and written not in touched and not _clears(insn):
                lost.add(address)
            touched |= {written}
        for following in reach.successors.get(address, ()):
            state = (following, touched)
            if state not in seen:
                seen.add(state)
                work.append(state)
    keeps = any(name in stored and _leaves_soon(code, end, start) for name, end in loaded)
    return _Uses(keeps, any(_returns(code, reach, address) for address in lost))


def _stores(insn: Insn) -> str:
    """The register that `insn` stores whole; "" if it stores none."""
    source = insn.destination if insn.name == "push" else insn.source if insn.name == "mov" else None
    if insn.name == "mov" and not isinstance(insn.destination, Mem):
        return ""
    return source.name if isinstance(source, Reg) and source.size == insn.bits // 8 else ""


def _writes(insn: Insn) -> str:
    """The register that `insn` writes as its first operand; "" if there is none."""
    target = insn.destination
    return target.name if isinstance(target, Reg) and insn.name not in _READS else ""


def _loads(insn: Insn) -> bool:
    """True if `insn`, which writes a register, loads all of it from memory."""
    return insn.name == "pop" or (insn.name == "mov" and isinstance(insn.source, Mem))


def _clears(insn: Insn) -> bool:
    return insn.name in ("xor", "sub") and insn.source == insn.destination


def _leaves_soon(code: Code, address: int, start: int) -> bool:
    """True if straight code leads from `address` to a return, or to a jump elsewhere than back to the `start` of the
    function (from where code goes on that found no room on its stack)."""
    for _ in range(_EPILOGUE):
        insn = code.insn(address)
        if insn is None or insn.flow is not Flow.NEXT:
            return insn is not None and (insn.flow is Flow.RETURN or (insn.flow is Flow.JUMP and insn.target != start))
        address = insn.end
    return False


def _returns(code: Code, reach: Reach, address: int) -> bool:
    """True if some way leads from `address` to a return of its function."""
    seen, work = {address}, deque([address])
    for _ in range(_STATES):
        if not work:
            return False
        insn = code.insn(work[0])
        following = reach.successors.get(work.popleft(), ())
        if insn is not None and insn.flow is Flow.RETURN and not following:
            return True
        work.extend(at for at in following if at not in seen)
        seen.update(following)
    return False
