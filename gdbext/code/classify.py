"""What single instructions mean to contexts and stacks, and constants found just before one."""

from __future__ import annotations

from typing import Final

from gdbext.code.disasm import Code, Flow, Insn, constant_in
from gdbext.code.operands import Imm, Mem, Reg


def shadows_interrupts(insn: Insn) -> bool:
    """True if interrupts are held off until after the next instruction: ``sti``, ``mov ss``, ``pop ss``
    (Intel SDM vol. 3A, 6.8.3)."""
    return insn.name == "sti" or (insn.name in ("mov", "pop") and insn.writes_register("ss"))


def is_padding(insn: Insn) -> bool:
    """True for what assemblers fill gaps with: ``nop``, ``int3``, ``xchg ax, ax``, ``lea esi, [esi]``."""
    if insn.name in ("nop", "int3"):
        return True
    target, source = insn.destination, insn.source
    if insn.name == "lea" and isinstance(source, Mem):
        plain = source.disp == 0 and source.index in ("", "eiz", "riz")
        return plain and isinstance(target, Reg) and target.name == source.base
    return insn.name in ("xchg", "mov") and isinstance(target, Reg) and target == source


_TRAP: Final = 16
"""Bytes in the longest speculation trap looked for."""


def skips_speculation_trap(code: Code, after: int, target: int) -> bool:
    """True if a call at whose end `after` lies nothing but a trap for speculation, up to its `target`: such a call
    fills the return stack buffer or begins a retpoline, and control goes on at `target` without coming back."""
    if not after < target <= after + _TRAP:
        return False
    address = after
    while address < target:
        insn = code.insn(address)
        if insn is None:
            return False
        back = insn.flow is Flow.JUMP and insn.target is not None and after <= insn.target < target
        if not back and insn.name not in ("int3", "pause", "lfence", "nop"):
            return False
        address = insn.end
    return address == target


def stack_source(insn: Insn) -> str:
    """Where `insn` takes a new RSP from (``memory``, ``register``, or ``frame``: out of RBP, as a compiled function
    does in its epilogue), or "" if it stays on its stack; ``control`` if it
    loads a control register into RSP, for want of another free register while page tables are switched."""
    name, operands = insn.name, insn.operands
    if not any(isinstance(o, Reg) and o.name == "rsp" for o in operands):
        return ""
    if name == "xchg":
        return "memory" if insn.memory else "register"
    if not insn.writes_register("rsp"):
        return ""
    source = insn.source
    if name == "pop":
        return "memory"
    if name == "lss":
        return "memory"
    if name not in ("mov", "lea", "cmove", "cmovne", "movabs") or source is None:
        return ""
    if isinstance(source, Imm):
        return "register"
    if isinstance(source, Reg):
        if source.name.startswith("cr"):
            return "control"
        return "" if source.name == "rsp" else "frame" if source.name == "rbp" else "register"
    if name == "lea":
        return "" if source.base == "rsp" else "frame" if source.base == "rbp" else "register"
    return "memory"


def stores_stack_pointer(insn: Insn) -> bool:
    """True if `insn` puts RSP away in memory that is not addressed through the stack itself."""
    target = insn.destination
    return (
        insn.name == "mov"
        and isinstance(target, Mem)
        and isinstance(insn.source, Reg)
        and insn.source.name == "rsp"
        and target.base not in ("rsp", "rbp")
    )


def takes_stack_pointer(insn: Insn) -> str:
    """The register that `insn` sets to RSP, by ``mov`` or ``xchg``; "" if it sets none. RBP is none: it points to
    frames."""
    if insn.name not in ("mov", "xchg") or insn.memory is not None:
        return ""
    names = [o.name for o in insn.operands if isinstance(o, Reg)]
    if "rsp" not in names or len(names) < 2 or (insn.name == "mov" and names[0] == "rsp"):
        return ""
    other = names[names[0] == "rsp"]
    return "" if other in ("rsp", "rbp") else other


_LOOK_BACK: Final = 12
"""Instructions looked back for the constant that a register holds."""
_IMPLICIT: Final = frozenset(
    {"cpuid", "rdmsr", "rdtsc", "rdtscp", "rdpmc", "xgetbv", "mul", "imul", "div", "idiv", "popal"}
)
"""Instructions that change general registers they do not name."""


def constant_of(name: str, past: list[Insn]) -> int | None:
    """The constant in register `name` after the straight run `past`, if one of its last instructions put it there."""
    for insn in reversed(past[-_LOOK_BACK:]):
        value = constant_in(insn, name)
        if value is not None:
            return value
        if insn.flow is Flow.CALL or insn.name in _IMPLICIT or insn.mnemonic.startswith("rep"):
            return None
        written = insn.operands if insn.name in ("xchg", "xadd") else insn.operands[:1]
        if any(isinstance(o, Reg) and o.name == name for o in written) and insn.name not in ("cmp", "test", "push"):
            return None
    return None


def pushed_constant(past: list[Insn], bits: int) -> int | None:
    """The constant that the last instruction of `past` pushed, as an address, or None."""
    if not past or past[-1].name != "push":
        return None
    operand = past[-1].destination
    value = None
    if isinstance(operand, Imm):
        value = operand.value
    elif isinstance(operand, Reg):
        value = constant_of(operand.name, past[:-1])
    return None if value is None else value & ((1 << bits) - 1)
