"""Instructions of a guest, decoded lazily and kept.

:class:`Code` turns a ``read`` callable into instructions. Decoding is capstone's plain mode (no detail), in short
runs, because explorations touch tens of thousands of instructions and ask for the operands of few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache, cached_property
from typing import Any, Final

import capstone

from gdbext.code.operands import Imm, Mem, Operand, Reg, parse, register

Read = Callable[[int, int], bytes]
"""``read(address, length)``: guest virtual memory; fewer bytes or OSError both mean "unmapped from there"."""

PAGE: Final = 4096
MAX_INSN: Final = 15
"""Longest instruction in bytes (Intel SDM vol. 2, 2.3.11)."""
_RUN: Final = 32
"""Bytes decoded at once: about one basic block."""


class Flow(Enum):
    """Where execution goes after an instruction."""

    NEXT = auto()  # the following one
    BRANCH = auto()  # the following one or the target
    JUMP = auto()
    CALL = auto()
    RETURN = auto()  # ret, retf
    EXIT = auto()  # iret, sysret, sysexit: to the context they resume
    STOP = auto()  # ud0-2, int3: an exception, and padding behind code that does not return


_EXITS: Final = frozenset({"iret", "iretd", "iretq", "sysret", "sysretq", "sysexit", "sysexitq"})
_FLOWS: Final[dict[str, Flow]] = {
    "jmp": Flow.JUMP, "ljmp": Flow.JUMP, "call": Flow.CALL, "lcall": Flow.CALL,
    "ret": Flow.RETURN, "retq": Flow.RETURN, "retf": Flow.RETURN, "retfq": Flow.RETURN,
    "loop": Flow.BRANCH, "loope": Flow.BRANCH, "loopne": Flow.BRANCH, "xbegin": Flow.BRANCH,
    "ud0": Flow.STOP, "ud1": Flow.STOP, "ud2": Flow.STOP, "ud2b": Flow.STOP, "int3": Flow.STOP,
    **dict.fromkeys(_EXITS, Flow.EXIT),
}  # fmt: skip
_TARGETED: Final = (Flow.BRANCH, Flow.JUMP, Flow.CALL)
_ENDS: Final = (Flow.JUMP, Flow.RETURN, Flow.EXIT, Flow.STOP)
"""What is behind these may be no code."""


@cache
def _kind(mnemonic: str) -> tuple[str, Flow]:
    """(the mnemonic without prefixes, where execution goes after it)."""
    name = mnemonic.rsplit(" ", 1)[-1]
    return name, _FLOWS.get(name) or (Flow.BRANCH if name[0] == "j" else Flow.NEXT)


@dataclass(eq=False)  # not frozen: tens of thousands are made, and freezing makes that three times as slow
class Insn:
    """One instruction, which nobody changes. ``address``: guest virtual; ``raw``: its bytes; ``mnemonic`` and
    ``op_str``: Intel syntax; ``name``: the mnemonic without prefixes (``rep``, ``lock``, ``notrack`` …); ``target``: of
    a direct jump, branch or call; ``bits``: mode it was decoded for."""

    address: int
    raw: bytes
    mnemonic: str
    op_str: str
    name: str
    flow: Flow
    target: int | None
    bits: int

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.raw)

    @property
    def end(self) -> int:
        """Address of the following instruction."""
        return self.address + len(self.raw)

    @cached_property
    def operands(self) -> tuple[Operand, ...]:
        """Explicit operands, destination first."""
        return parse(self.op_str, self.end, self.bits)

    @property
    def memory(self) -> Mem | None:
        """The first memory operand, if there is one."""
        return next((o for o in self.operands if isinstance(o, Mem)), None)

    @property
    def destination(self) -> Operand | None:
        """The first operand."""
        return self.operands[0] if self.operands else None

    @property
    def source(self) -> Operand | None:
        """The second operand."""
        return self.operands[1] if len(self.operands) > 1 else None

    def writes_register(self, name: str) -> bool:
        """True if `name` (full name) is the explicit destination register."""
        target = self.destination
        return isinstance(target, Reg) and target.name == name


class Code:
    """The guest's code as seen through `read`, in `bits`-bit mode (32 or 64; 16 decodes too).

    Pages and instructions are read once.
    """

    def __init__(self, read: Read, bits: int) -> None:
        self.bits = bits
        self.word = 8 if bits == 64 else 4
        self._read = read
        self._mask = (1 << max(bits, 32)) - 1
        mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
        self._plain = capstone.Cs(capstone.CS_ARCH_X86, mode)
        self._detailed: Any = None
        self._mode = mode
        self._pages: dict[int, tuple[int, bytes]] = {}
        self._holes: set[int] = set()
        """Addresses from which on nothing of their page can be read: to try costs a live guest a millisecond."""
        self._insns: dict[int, Insn | None] = {}

    def bytes_at(self, address: int, length: int) -> bytes:
        """Up to `length` bytes from `address`; fewer where memory is unmapped."""
        parts = []
        address &= self._mask
        while length > 0:
            start, data = self._page(address)
            chunk = data[address - start : address - start + length]
            if not chunk:
                break
            parts.append(chunk)
            length -= len(chunk)
            address += len(chunk)
            if address % PAGE or address > self._mask:
                break
        return b"".join(parts)

    def pointer_at(self, address: int) -> int | None:
        """The word of the mode's size stored at `address`, or None where memory is unmapped."""
        raw = self.bytes_at(address, self.word)
        return int.from_bytes(raw, "little") if len(raw) == self.word else None

    def insn(self, address: int) -> Insn | None:
        """The instruction at `address`, or None if nothing decodes there."""
        address &= self._mask
        try:
            return self._insns[address]
        except KeyError:
            self._decode(address)
            return self._insns[address]

    def effects(self, insn: Insn) -> tuple[frozenset[str], frozenset[str]]:
        """(read, written) full register names, implicit ones included; flags are ``rflags``. Slow: capstone detail."""
        if self._detailed is None:
            self._detailed = capstone.Cs(capstone.CS_ARCH_X86, self._mode)
            self._detailed.detail = True
        decoded = next(self._detailed.disasm(insn.raw, insn.address, 1), None)
        if decoded is None:
            return frozenset(), frozenset()
        read, written = decoded.regs_access()
        return self._names(decoded, read), self._names(decoded, written)

    def _page(self, address: int) -> tuple[int, bytes]:
        """(start, bytes) of the readable stretch of `address`'s page from `start` on that holds it, if any does."""
        page = address - address % PAGE
        start, data = self._pages.get(page, (-1, b""))
        if start < 0:
            start, data = page, self._fetch(page, PAGE)
            self._pages[page] = (start, data)
        if start <= address < start + len(data):
            return start, data
        if address not in self._holes:
            # The page's beginning is not there (a section that starts in mid-page): its rest may be.
            rest = self._fetch(address, page + PAGE - address)
            if rest:
                self._pages[page] = address, rest
                return address, rest
            self._holes.add(address)
        return address, b""

    def _fetch(self, address: int, length: int) -> bytes:
        try:
            return bytes(self._read(address, length))[:length]
        except OSError:
            return b""

    def _decode(self, address: int) -> None:
        data = self.bytes_at(address, _RUN + MAX_INSN)
        for start, size, mnemonic, op_str in self._plain.disasm_lite(data, address):
            if start - address >= _RUN or start in self._insns:
                break
            at = start - address
            insn = self._insns[start] = self._build(start, data[at : at + size], mnemonic, op_str)
            if insn.flow in _ENDS:
                break
        self._insns.setdefault(address, None)

    def _build(self, address: int, raw: bytes, mnemonic: str, op_str: str) -> Insn:
        name, flow = _kind(mnemonic)
        target = None
        if flow in _TARGETED:
            far = op_str.replace(", ", ":").rpartition(":")[2]
            if far[:1].isdigit():
                target = int(far, 0) & self._mask
        return Insn(address, raw, mnemonic, op_str, name, flow, target, self.bits)

    @staticmethod
    def _names(decoded: Any, numbers: list[int]) -> frozenset[str]:
        names = set()
        for number in numbers:
            spelling = str(decoded.reg_name(number))
            known = register(spelling)
            names.add(known.name if known else "rflags" if spelling.endswith("flags") else spelling)
        return frozenset(names)


def constant_in(insn: Insn, name: str) -> int | None:
    """The constant that `insn` leaves in register `name`: ``mov $x``, ``lea`` of an absolute address, ``xor r, r``."""
    destination, source = insn.destination, insn.source
    if not isinstance(destination, Reg) or destination.name != name or destination.size < 4:
        return None
    mask = (1 << 8 * destination.size) - 1
    if insn.name in ("mov", "movabs") and isinstance(source, Imm):
        return source.value & mask
    if insn.name == "lea" and isinstance(source, Mem) and source.constant:
        return source.disp & mask
    if insn.name == "xor" and source == destination:
        return 0
    return None
