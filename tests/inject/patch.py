"""Changing a standing guest's code from outside: a few bytes in place, or a detour through bytes nobody runs."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gdbext.arch.addresses import MASK64
from gdbext.code.disasm import Code, Flow, Insn
from gdbext.code.listing import text
from gdbext.code.paths import Reach
from tests.inject.live import Live

_JUMP: Final = 5
"""Bytes of a ``jmp rel32``."""
_SEARCH: Final = 1 << 20
"""Bytes on either side in which unused ones are looked for."""
_PADDING: Final = (0xCC, 0x00, 0x90)
NOP: Final = b"\x90"
SWAPGS: Final = b"\x0f\x01\xf8"
_LOW: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")


class NotHere(Exception):
    """This kernel, as it stands, has no place for the fault; the text says why."""


class TooLate(NotHere):
    """What was waited for did not come in time: it may the next time."""


@dataclass(frozen=True, slots=True)
class Change:
    """What was changed. ``address``: guest virtual; ``before`` and ``after``: instructions, or a value."""

    address: int
    symbol: str
    before: tuple[str, ...]
    after: tuple[str, ...]


def push(name: str) -> bytes:
    """``push`` of a 64-bit register (in 32-bit code: of its low half)."""
    return _one_register(0x50, name)


def pop(name: str) -> bytes:
    """``pop``, likewise."""
    return _one_register(0x58, name)


def _one_register(opcode: int, name: str) -> bytes:
    if name in _LOW:
        return bytes([opcode + _LOW.index(name)])
    return bytes([0x41, opcode + int(name[1:]) - 8])


def drop_word(bits: int) -> bytes:
    """``lea``: RSP one word up, and nothing else changed."""
    return b"\x48\x8d\x64\x24\x08" if bits == 64 else b"\x8d\x64\x24\x04"


class Patcher:
    """Changes the code of a guest that is held. ``reach``: what of its code is known to run."""

    def __init__(self, live: Live, reach: Reach) -> None:
        self.live, self._reach = live, reach
        self._used: list[tuple[int, int]] = []

    def code(self) -> Code:
        """The guest's code as it is now."""
        return Code(self.live.read, self.live.bits)

    def replace(self, address: int, data: bytes) -> Change:
        """Put `data` over whole instructions from `address` on; what is left of the last one becomes NOPs."""
        end = self._covered(address, len(data))[-1].end
        return self._write(address, data + NOP * (end - address - len(data)))

    def nop(self, insn: Insn) -> Change:
        """Let `insn` do nothing."""
        return self._write(insn.address, NOP * insn.size)

    def exchange(self, first: Insn, second: Insn) -> Change:
        """Let two neighbours change places."""
        if first.end != second.address:
            raise NotHere("the two instructions are no neighbours")
        return self._write(first.address, second.raw + first.raw)

    def insert(self, address: int, data: bytes, instead_of: int = 0) -> Change:
        """Let `data` run before the instruction at `address`, in place of the first `instead_of` instructions there.

        The instructions in the way of the jump that this needs move with it.
        """
        run = self._covered(address, _JUMP)
        last = run[-1]
        kept = [insn for insn in run[instead_of:] if insn.flow is not Flow.JUMP]
        back = last.target if last.flow is Flow.JUMP and last.target is not None else last.end
        ends = (Flow.NEXT, Flow.JUMP, Flow.EXIT)
        if any(insn.flow is not Flow.NEXT for insn in run[:-1]) or last.flow not in ends:
            raise NotHere("control leaves between the instructions that would have to move")
        inner, outer = {insn.address for insn in run[1:]}, self._reach.successors.keys() - {i.address for i in run}
        if any(inner & set(self._reach.successors[at]) for at in outer):
            raise NotHere("something jumps between the instructions that would have to move")
        length = len(data) + sum(insn.size for insn in kept)
        place = self._unused(address, length + _JUMP)
        body = data
        for insn in kept:
            body += moved(insn, place + len(body))
        self.live.stub.write(place, body + _jump(place + len(body), back))
        detour = _jump(address, place)
        change = self._write(address, detour + NOP * (last.end - address - _JUMP))
        shown = tuple(text(insn) for insn in _decode(self.code(), place, len(body)))
        return Change(change.address, change.symbol, change.before, shown)

    def _covered(self, address: int, length: int) -> list[Insn]:
        """The instructions that have a byte within `length` of `address`."""
        found: list[Insn] = []
        code, at = self.code(), address
        while at < address + length:
            insn = code.insn(at)
            if insn is None:
                raise NotHere(f"nothing decodes at {at:#x}")
            found.append(insn)
            at = insn.end
        return found

    def _write(self, address: int, data: bytes) -> Change:
        before = tuple(text(insn) for insn in _decode(self.code(), address, len(data)))
        standing = self.live.stub.register("rip")
        if address < standing < address + len(data):
            raise NotHere("the guest stands among the instructions to be changed")
        self.live.stub.write(address, data)
        after = tuple(text(insn) for insn in _decode(self.code(), address, len(data)))
        return Change(address, self.live.symbol(address) or "", before, after)

    def _unused(self, near: int, length: int) -> int:
        """The address of `length` bytes that nobody runs: skipped by a jump that is always taken, or padding."""
        code = self.code()
        jumps = (insn for at in self._reach.successors if (insn := code.insn(at)) and insn.flow is Flow.JUMP)
        for jump in sorted(jumps, key=lambda insn: abs(insn.address - near)):
            stretch = range(jump.end, jump.end + length)
            if jump.target and jump.target >= jump.end + length and not self._taken(stretch):
                return self._use(jump.end, length)
        for page in _outwards(near & ~0xFFF):
            data = code.bytes_at(page, 0x1000)
            for filler in _PADDING:
                at = data.rfind(bytes([filler]) * (length + 16))
                if at >= 0 and not self._taken(range(page + at + 16, page + at + 16 + length)):
                    return self._use(page + at + 16, length)
        raise NotHere(f"no {length} unused bytes of code near {near:#x}")

    def _taken(self, stretch: Sequence[int]) -> bool:
        known = any(at in self._reach.successors for at in stretch)
        return known or any(a < stretch[-1] + 1 and stretch[0] < b for a, b in self._used)

    def _use(self, address: int, length: int) -> int:
        self._used.append((address, address + length))
        return address


def moved(insn: Insn, to: int) -> bytes:
    """`insn` as it must be at `to` to do the same: what it addresses relative to RIP stays where it is."""
    if "rip" not in insn.op_str:
        return insn.raw
    place = insn.memory
    (distance,) = struct.unpack("<i", insn.raw[-4:])
    if place is None or (insn.end + distance) & MASK64 != place.disp:
        raise NotHere("an instruction that would have to move is relative to its place")
    return insn.raw[:-4] + struct.pack("<i", distance + insn.address - to)


def _outwards(page: int) -> list[int]:
    return sorted(range(page - _SEARCH, page + _SEARCH, 0x1000), key=lambda at: abs(at - page))


def _jump(source: int, target: int) -> bytes:
    distance = (target - source - _JUMP + (1 << 31)) % (1 << 32) - (1 << 31)
    return b"\xe9" + struct.pack("<i", distance)


def _decode(code: Code, address: int, length: int) -> list[Insn]:
    found, at = [], address
    while at < address + length and (insn := code.insn(at)) is not None:
        found.append(insn)
        at = insn.end
    return found
