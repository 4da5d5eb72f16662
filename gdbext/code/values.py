"""Where a value comes from: what following it through code leaves of it.

A :class:`Value` is an origin plus a constant. Origins are the interrupted context's fields, registers at the start of
the walk, words loaded from memory, and the results of instructions that are not followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gdbext.arch.registers import display_name


@dataclass(frozen=True, slots=True)
class Context:
    """A field of the interrupted context (an entry's walk) or of the thread that leaves (a switch's)."""

    field: str


@dataclass(frozen=True, slots=True)
class Start:
    """A register as it was where the walk began."""

    name: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """`size` bytes that were at `place` before the walk wrote there."""

    place: Place
    size: int


@dataclass(frozen=True, slots=True)
class Half:
    """The low or high 32 bits of a 64-bit origin, as ``rdmsr`` delivers them."""

    whole: Context | Start | Loaded | Result
    high: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What the instruction at `address` (a call, arithmetic) left in `name`; not followed further."""

    address: int
    name: str


Atom = Context | Start | Loaded | Half | Result


@dataclass(frozen=True, slots=True)
class Place:
    """A memory address: segment:[atom + disp]. ``segment``: "", "fs" or "gs"; ``disp``: bytes, signed unless `atom`
    is None; guest virtual."""

    segment: str
    atom: Atom | None
    disp: int

    def text(self, bits: int = 64) -> str:
        """``gs:[0x8]``, ``[rdi+0x88]``, ``[[gs:0x8]+0x88]``."""
        prefix = f"{self.segment}:" if self.segment else ""
        if self.atom is None:
            return f"{prefix}[{self.disp:#x}]"
        sign = "+" if self.disp >= 0 else "-"
        offset = f"{sign}{abs(self.disp):#x}" if self.disp else ""
        return f"{prefix}[{atom_text(self.atom, bits)}{offset}]"


@dataclass(frozen=True, slots=True)
class Value:
    """``atom + disp``; a constant if `atom` is None."""

    atom: Atom | None
    disp: int = 0

    @property
    def constant(self) -> int | None:
        """The number, if the value is one."""
        return self.disp if self.atom is None else None

    @property
    def context(self) -> str:
        """The field of the interrupted context that this is, unchanged (its low half counts); else ""."""
        atom = self.atom.whole if isinstance(self.atom, Half) and not self.atom.high else self.atom
        return atom.field if isinstance(atom, Context) and self.disp == 0 else ""

    @property
    def place(self) -> Place | None:
        """The place it was loaded from, unchanged; else None."""
        atom = self.atom.whole if isinstance(self.atom, Half) and not self.atom.high else self.atom
        return atom.place if isinstance(atom, Loaded) and self.disp == 0 else None

    def plus(self, number: int, bits: int) -> Value:
        """This value plus a constant, wrapped to `bits`."""
        return Value(self.atom, wrap(self.disp + number, bits, signed=self.atom is not None))

    def text(self, bits: int = 64) -> str:
        """``the interrupted rax``, ``[rdi+0x88]``, ``rbx``, ``0x33``."""
        if self.atom is None:
            return f"{self.disp:#x}"
        offset = f"{'+' if self.disp > 0 else '-'}{abs(self.disp):#x}" if self.disp else ""
        return atom_text(self.atom, bits) + offset


FRAME: Final = Start("frame")
"""Origin of the address of the hardware frame's RIP word."""
STACK: Final = Start("rsp")
"""Origin of a stack that was there before the walk."""
STACKS: Final = (("", FRAME), ("", STACK))
CPL: Final = Context("cpl")
"""The privilege level of the interrupted code: the low two bits of its CS."""
MAX_DEPTH: Final = 6
"""Pointers followed through memory at most; beyond, a value is the result of its load."""


def depth(atom: Atom | None) -> int:
    """How many loads lie between a value and a register."""
    levels = 0
    while isinstance(atom, (Loaded, Half)):
        if isinstance(atom, Half):
            atom = atom.whole
        else:
            levels += 1
            atom = atom.place.atom
    return levels


def wrap(number: int, bits: int, signed: bool) -> int:
    """`number` modulo 2**bits, as a signed or unsigned number."""
    number &= (1 << bits) - 1
    return number - (1 << bits) if signed and number >> (bits - 1) else number


def atom_text(atom: Atom, bits: int) -> str:
    """An origin in words."""
    if atom == FRAME:
        return "frame"
    if isinstance(atom, Context):
        return f"the interrupted {display_name(atom.field, bits)}"
    if isinstance(atom, Start):
        return display_name(atom.name, bits)
    if isinstance(atom, Loaded):
        return atom.place.text(bits)
    if isinstance(atom, Half):
        return f"the {'high' if atom.high else 'low'} half of {atom_text(atom.whole, bits)}"
    return f"what {atom.address:#x} leaves in {display_name(atom.name, bits)}"
