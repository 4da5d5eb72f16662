"""From one debugger stop to one event row: registers and a few words of stack in, a batch of one out. Pure.

Everything follows :mod:`gdbext.events.row`; the frames are those of Intel SDM vol. 3A, 6.12–6.14, the system calls
those of vol. 2, SYSCALL, SYSRET, SYSENTER and SYSEXIT.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gdbext.arch import flags as rf
from gdbext.arch import vectors
from gdbext.arch.addresses import MASK32
from gdbext.arch.descriptors import sysret_selectors
from gdbext.arch.registers import GPR64
from gdbext.events.row import STACK_WORDS, Batch, Flag, How, Kind, empty
from gdbext.gdb.layout import Registers

Read = Callable[[int, int], bytes]
_LIVE: Final = ("fs_base", "gs_base", "kernel_gs_base", "cr2", "cr3", "ds", "es", "fs", "gs")
_SYSRET_FLAGS: Final = 0x3C7FD7
"""RFLAGS := (R11 AND this) OR 2 (Intel SDM vol. 2, SYSRET)."""
_CS_RPL: Final = 3
_WORDS_READ: Final = STACK_WORDS + 1
_PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler as the gates describe it: the ``vectors`` whose gates name it, the IST index of the first, and
    whether user code may call one of them by ``int n``."""

    address: int
    vectors: tuple[int, ...]
    ist: int = 0
    callable: bool = False

    @property
    def vector(self) -> int:
        """The vector, or UNKNOWN if several share the handler."""
        return self.vectors[0] if len(self.vectors) == 1 else vectors.UNKNOWN


class Capture:
    """Makes rows and numbers them. ``read`` gives guest virtual memory, OSError where unmapped.

    ``star``: the last STAR value seen written, 0 if none.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self.seq = 0
        self.star = 0
        self._soft: dict[tuple[int, int, int], bool] = {}

    def interrupt(self, cpu: int, regs: Registers, handler: Handler, bits: int) -> Batch | None:
        """The entry through a gate: `regs` are those at the handler's first instruction.

        None if what lies on the stack is no frame: the instruction was reached by a jump.
        """
        row = self._row(Kind.ENTRY, cpu, regs, bits)
        row["vector"] = handler.vector
        row["how"] = How.NMI if handler.vector == vectors.NMI else How.INTERRUPT
        if vectors.is_exception(min(handler.vectors)):
            row["how"] = How.EXCEPTION
        word, flags = bits // 8, 0
        words = self._words(regs["rsp"], word)
        skip = 1 if words and _error_code_pushed(regs["rsp"], words, handler, bits) else 0
        words = words[skip:]
        if len(words) < 3:
            row["flags"] |= Flag.UNREADABLE
            return row
        if not _is_frame(words):
            self.seq -= 1
            return None
        if not skip and all(vector in vectors.WITH_ERROR_CODE for vector in handler.vectors):
            row["how"] = How.INTERRUPT
        if skip:
            flags |= Flag.ERROR_CODE
            row["error"] = self._words(regs["rsp"], word)[0] & MASK32
        if handler.ist:
            flags |= Flag.IST
        row["frame"] = regs["rsp"] + skip * word
        flags |= self._frame(row, words, bits, regs)
        if self._is_int_n(handler, int(words[0]), words[1] & 3, regs.get("cr3", 0)):
            row["how"] = How.SOFT
        row["flags"] |= flags
        return row

    def system_call(self, cpu: int, regs: Registers, bits: int) -> Batch:
        """The entry by ``syscall``: RCX holds RIP, R11 RFLAGS, RSP is still the user's."""
        row = self._row(Kind.ENTRY, cpu, regs, bits)
        row["how"], row["vector"] = How.SYSCALL, vectors.SYSCALL
        row["rip"], row["rflags"] = regs["rcx"], regs.get("r11", 0)
        row["cs"], row["ss"] = sysret_selectors(self.star, True) if self.star else (0, 0)
        return row

    def sysenter(self, cpu: int, regs: Registers, bits: int) -> Batch:
        """The entry by ``sysenter``: neither RIP nor RSP of the caller are kept by the CPU."""
        row = self._row(Kind.ENTRY, cpu, regs, bits)
        row["how"], row["vector"] = How.SYSENTER, vectors.SYSENTER
        row["rip"] = row["rsp"] = row["cs"] = row["ss"] = 0
        row["flags"] |= Flag.UNREADABLE
        return row

    def iret(self, cpu: int, regs: Registers, word: int, size: int, bits: int) -> Batch:
        """An ``iret`` of `size` bytes that pops words of `word` bytes is about to run."""
        row = self._row(Kind.EXIT, cpu, regs, bits)
        row["how"], row["size"], row["frame"] = How.IRET, word, regs["rsp"]
        words = self._words(regs["rsp"], word)
        if len(words) < 3:
            row["flags"] |= Flag.UNREADABLE
            return row
        flags = self._frame(row, words, 8 * word, regs)
        if words[0] == regs["rip"] + size and (words[1] ^ regs["cs"]) & 3 == 0:
            flags |= Flag.SELF
        if word != 8:
            flags |= Flag.LINEAR32
        row["flags"] |= flags
        return row

    def sysret(self, cpu: int, regs: Registers, word: int, bits: int) -> Batch:
        """A ``sysret`` to 64-bit (`word` 8) or 32-bit code is about to run."""
        row = self._row(Kind.EXIT, cpu, regs, bits)
        row["how"], row["size"] = How.SYSRET, word
        row["rip"] = regs["rcx"] if word == 8 else regs["rcx"] & MASK32
        row["rflags"] = regs.get("r11", 0) & _SYSRET_FLAGS | rf.ALWAYS_ONE
        row["cs"], row["ss"] = sysret_selectors(self.star, word == 8) if self.star else (0, 0)
        if word != 8:
            row["flags"] |= Flag.LINEAR32
        return row

    def sysexit(self, cpu: int, regs: Registers, word: int, bits: int) -> Batch:
        """A ``sysexit`` is about to run: RIP from RDX, RSP from RCX; RFLAGS stay."""
        row = self._row(Kind.EXIT, cpu, regs, bits)
        mask = MASK32 if word != 8 else (1 << 64) - 1
        row["how"], row["size"] = How.SYSEXIT, word
        row["rip"], row["rsp"] = regs["rdx"] & mask, regs["rcx"] & mask
        row["cs"] = row["ss"] = _CS_RPL
        if word != 8:
            row["flags"] |= Flag.LINEAR32
        return row

    def plain(self, kind: int, cpu: int, regs: Registers, bits: int, **columns: int) -> Batch:
        """Any other event, with the live registers."""
        row = self._row(kind, cpu, regs, bits)
        for name, value in columns.items():
            row[name] = value
        return row

    def died(self, cpu: int) -> Batch:
        """Triple fault or reset: nothing is known but when."""
        row = empty(1)
        self.seq += 1
        row["seq"], row["kind"], row["cpu"], row["time"] = self.seq, Kind.DIED, cpu, time.monotonic_ns()
        row["flags"] = Flag.NO_BASES | Flag.NO_KERNEL_GS | Flag.UNREADABLE
        return row

    def _row(self, kind: int, cpu: int, regs: Registers, bits: int) -> Batch:
        """A row with everything that is live."""
        self.seq += 1
        row = empty(1)
        one = row[0]
        one["seq"], one["time"], one["kind"], one["cpu"] = self.seq, time.monotonic_ns(), kind, cpu
        one["pc"] = one["rip"] = regs["rip"]
        one["mode"], one["cpl"] = bits, regs["cs"] & 3
        for name in GPR64[: 16 if bits == 64 else 8]:
            one[name] = regs.get(name, 0)
        one["rflags"], one["cs"], one["ss"] = regs["rflags"], regs["cs"], regs.get("ss", 0)
        for name in _LIVE:
            one[name] = regs.get(name, 0)
        one["star"] = self.star
        if "fs_base" not in regs:
            one["flags"] |= Flag.NO_BASES
        if "kernel_gs_base" not in regs:
            one["flags"] |= Flag.NO_KERNEL_GS
        return row

    def _words(self, address: int, word: int) -> list[int]:
        """Up to nine words from `address` up, fewer where memory ends behind the page."""
        for length in (_WORDS_READ * word, _PAGE - address % _PAGE):
            try:
                raw = self._read(address, length)
            except OSError:
                continue
            return [int.from_bytes(raw[i : i + word], "little") for i in range(0, len(raw) - word + 1, word)]
        return []

    @staticmethod
    def _frame(row: Batch, words: list[int], bits: int, regs: Registers) -> int:
        """Fill in the context that the frame's `words` hold; return the flags that say what is missing."""
        row["rip"], row["cs"], row["rflags"] = words[0], words[1] & 0xFFFF, words[2]
        row["stack"][0][: min(len(words), STACK_WORDS)] = words[:STACK_WORDS]
        if bits == 64 or (words[1] ^ regs["cs"]) & 3:
            if len(words) < 5:
                return Flag.UNREADABLE
            row["rsp"], row["ss"] = words[3], words[4] & 0xFFFF
            return 0
        row["rsp"], row["ss"] = int(row["frame"][0]) + 3 * bits // 8, regs.get("ss", 0)
        return Flag.NO_STACK

    def _is_int_n(self, handler: Handler, rip: int, cpl: int, cr3: int) -> bool:
        """True if the bytes before the saved RIP are the ``int n`` (``int3``, ``into``, ``int1``) of this vector.

        User code is only looked at where a gate lets it call; what was read is kept, for loops come back.
        """
        if cpl == 3 and not handler.callable:
            return False
        key = (rip, cr3, handler.address)
        known = self._soft.get(key)
        if known is None:
            try:
                raw = self._read((rip - 2) & ((1 << 64) - 1), 2)
            except OSError:
                return False
            known = raw[:1] == b"\xcd" and raw[1] in handler.vectors
            known |= raw[1:] in _SHORT and _SHORT[raw[1:]] in handler.vectors
            if len(self._soft) > 4096:
                self._soft.clear()
            self._soft[key] = known
        return known


_SHORT: Final = {b"\xcc": vectors.BP, b"\xce": vectors.OF, b"\xf1": vectors.DB}
"""One-byte instructions that raise a vector of their own (Intel SDM vol. 2, INT n/INTO/INT3/INT1)."""


def _error_code_pushed(rsp: int, words: list[int], handler: Handler, bits: int) -> bool:
    """Whether the CPU pushed an error code below the frame.

    64-bit: it aligns RSP to 16 before it pushes five words (SDM vol. 3A, 6.14.2), so a sixth leaves it aligned.
    32-bit: by vector, unless what would then be CS and EFLAGS cannot be, as after an ``int n`` with that number, or the
    code would have more than 16 bits: an interrupt of a PIC that nobody has programmed anew comes through vector 8.
    """
    if bits == 64:
        return rsp % 16 == 0
    if not any(vector in vectors.WITH_ERROR_CODE for vector in handler.vectors):
        return False
    return (words[0] < 0x10000 and len(words) > 3 and _is_frame(words[1:])) or not _is_frame(words)


def _is_frame(words: list[int]) -> bool:
    """True if the words can be RIP, CS, EFLAGS: a selector that is not null, and the bit that is always one."""
    return 3 < words[1] < 0x10000 and words[2] & rf.ALWAYS_ONE != 0 and words[2] & rf.RESERVED & MASK32 == 0
