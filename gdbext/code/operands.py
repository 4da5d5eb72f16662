"""Operands of an instruction, from its disassembled text.

Decoding with capstone's detail costs ten times the plain decoding, and its text carries the same operands; so the
text is parsed, and only where somebody asks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gdbext.arch.registers import GPR64, SEGMENTS


@dataclass(frozen=True, slots=True)
class Reg:
    """A register operand. ``name``: the full register (``rax`` for ``al``); ``size``: bytes; ``high``: ``ah``…"""

    name: str
    size: int
    high: bool = False


@dataclass(frozen=True, slots=True)
class Imm:
    """An immediate operand, as the signed or unsigned number the disassembler prints."""

    value: int


@dataclass(frozen=True, slots=True)
class Mem:
    """A memory operand: segment:[base + index*scale + disp].

    ``segment``: ``""`` unless the instruction names one. ``disp`` is signed; for RIP-relative operands it is the
    absolute address and ``base`` is empty. ``size``: bytes accessed, 0 where the instruction does not say
    (``fxsave``, ``lidt``, far pointers).
    """

    segment: str
    base: str
    index: str
    scale: int
    disp: int
    size: int

    @property
    def constant(self) -> bool:
        """True if the address depends on no register but perhaps a segment base."""
        return not self.base and not self.index


Operand = Reg | Imm | Mem

_SIZES: Final = {
    "byte": 1, "word": 2, "dword": 4, "fword": 6, "qword": 8, "tbyte": 10, "xword": 10, "xmmword": 16,
    "ymmword": 32, "zmmword": 64,
}  # fmt: skip
_REGISTERS: Final[dict[str, Reg]] = {}


def _fill_registers() -> None:
    for number, name in enumerate(GPR64):
        if number < 8:
            short = name[1:]
            low = short[0] + "l" if short.endswith("x") else short + "l"
            spellings = [(name, 8), ("e" + short, 4), (short, 2), (low, 1)]
            if short.endswith("x"):
                _REGISTERS[short[0] + "h"] = Reg(name, 1, True)
        else:
            spellings = [(name, 8), (name + "d", 4), (name + "w", 2), (name + "b", 1)]
        for spelling, size in spellings:
            _REGISTERS[spelling] = Reg(name, size)
    for name in SEGMENTS:
        _REGISTERS[name] = Reg(name, 2)
    for number in range(16):
        _REGISTERS[f"cr{number}"] = Reg(f"cr{number}", 8)
        _REGISTERS[f"dr{number}"] = Reg(f"dr{number}", 8)
    for number in range(32):
        for prefix, size in (("xmm", 16), ("ymm", 32), ("zmm", 64)):
            _REGISTERS[f"{prefix}{number}"] = Reg(f"xmm{number}", size)
    for number in range(8):
        _REGISTERS[f"mm{number}"] = Reg(f"mm{number}", 8)
        _REGISTERS[f"st({number})"] = Reg(f"st{number}", 10)
        _REGISTERS[f"k{number}"] = Reg(f"k{number}", 8)
    _REGISTERS["rip"] = Reg("rip", 8)
    _REGISTERS["eip"] = Reg("rip", 4)
    _REGISTERS["ip"] = Reg("rip", 2)


_fill_registers()

_MEMORY: Final = re.compile(r"(?:(\w+) ptr |ptr )?(?:([c-gs]s):)?\[([^\]]*)\]")
_TERM: Final = re.compile(r"([+-]?)\s*(\w+)(?:\*(\d))?")


def parse(text: str, end: int, bits: int) -> tuple[Operand, ...]:
    """Parse capstone's operand text of the instruction that ends before address `end` (guest virtual).

    Operands that are none of the three kinds (``8:0x1000``, masks, roundings) are left out.
    """
    operands: list[Operand] = []
    for part in text.split(", "):
        operand = _parse_one(part.strip(), end, bits)
        if operand is not None:
            operands.append(operand)
    return tuple(operands)


def register(spelling: str) -> Reg | None:
    """The register called `spelling` (any size), or None."""
    return _REGISTERS.get(spelling)


def linear(operand: Mem, registers: Mapping[str, int], bits: int = 64) -> int:
    """The linear address of a memory operand, from the registers (only FS and GS have a base that counts)."""
    address = operand.disp
    if operand.base:
        address += registers.get(operand.base, 0)
    if operand.index:
        address += registers.get(operand.index, 0) * operand.scale
    if operand.segment in ("fs", "gs"):
        address += registers.get(f"{operand.segment}_base", 0)
    return address & ((1 << bits) - 1)


def _parse_one(part: str, end: int, bits: int) -> Operand | None:
    known = _REGISTERS.get(part)
    if known is not None:
        return known
    match = _MEMORY.match(part)
    if match:
        return _parse_memory(match, end, bits)
    try:
        return Imm(int(part, 0))
    except ValueError:
        return None


def _parse_memory(match: re.Match[str], end: int, bits: int) -> Mem | None:
    size_name, segment, inside = match.groups()
    base = index = ""
    scale, disp = 1, 0
    for sign, word, times in _TERM.findall(inside):
        if word[0].isdigit():
            disp += -int(word, 0) if sign == "-" else int(word, 0)
            continue
        known = _REGISTERS.get(word)
        name = known.name if known else word
        if times:
            index, scale = name, int(times)
        elif not base:
            base = name
        else:
            index = name
    if base == "rip":
        base, disp = "", (disp + end) & ((1 << bits) - 1)
    elif not base and not index:
        disp &= (1 << bits) - 1
    return Mem(segment or "", base, index, scale, disp, _SIZES.get(size_name or "", 0))
