"""Which instruction made a store, where a watchpoint stopped behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gdbext.code.disasm import MAX_INSN, Code, Flow, Insn
from gdbext.code.listing import listing
from gdbext.code.operands import Mem, linear

_STRING: Final = {"stosb": 1, "stosw": 2, "stosd": 4, "stosq": 8, "movsb": 1, "movsw": 2, "movsd": 4, "movsq": 8}
_READ_ONLY: Final = frozenset(["cmp", "test", "bt", "ptest", "ucomisd", "comisd", "push", "mul", "div", "idiv"])
"""Instructions whose first operand, where it is memory, is read alone."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A store: the instruction at ``pc``, ``size`` bytes at ``address`` (guest virtual), by a push or a call."""

    pc: int
    address: int
    size: int
    pushed: bool = False


def stored(code: Code, registers: Mapping[str, int], start: int, end: int) -> Stored | None:
    """The store from `start` to before `end` behind which a vCPU with these `registers` stands; None if the code does
    not show it.

    A watchpoint stops behind the instruction (Intel SDM vol. 3B, 17.2.4): it ends where the vCPU stands, or called
    what is there. Of several that could have ended there, the one that most readings of the code in front share.
    """
    rip = registers["rip"]
    behind = [rip]
    pushed = code.pointer_at(registers["rsp"])
    if pushed is not None and start <= registers["rsp"] < end:
        behind.append(pushed)  # the return address of a call
    for place in behind:
        likely = [insn.address for insn in listing(code, place, before=1, after=0) if insn.end == place]
        sizes = [place - at for at in likely] + [n for n in range(MAX_INSN, 0, -1) if place - n not in likely]
        for size in sizes:
            insn = code.insn(place - size)
            if insn is None or insn.end != place or (insn.flow is Flow.CALL) != (place != rip):
                continue
            found = _target(code, insn, registers)
            if found is not None and found.address < end and start < found.address + found.size:
                return found
    return None


def _target(code: Code, insn: Insn, registers: Mapping[str, int]) -> Stored | None:
    """Where `insn` has stored, if it is one that stores; `registers` are those behind it."""
    if insn.flow is Flow.CALL or insn.name.startswith("push"):
        many = {"pushal": 8, "pushaw": 8}.get(insn.name, 1)
        return Stored(insn.address, registers["rsp"], many * code.word, True)
    if insn.name in _STRING and not insn.op_str.startswith("xmm"):
        size = _STRING[insn.name]
        return Stored(insn.address, registers["rdi"] - size, size)  # with DF clear, as the ABI has it
    target = insn.destination if insn.name != "xchg" else insn.memory
    if not isinstance(target, Mem) or insn.name in _READ_ONLY:
        return None
    return Stored(insn.address, linear(target, registers, code.bits), target.size or 512)
