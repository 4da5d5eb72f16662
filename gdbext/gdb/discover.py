"""Entry points of a running guest from its own tables and bytes. Pure: memory comes through a `read` callable."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from gdbext.arch import vectors
from gdbext.arch.addresses import is_canonical, is_high_half
from gdbext.arch.descriptors import decode_idt
from gdbext.arch.registers import MSR_LSTAR
from gdbext.code.disasm import Code
from gdbext.code.operands import Imm, Mem, Reg
from gdbext.code.paths import Entry, Gateway, Limits, explore
from gdbext.gdb.capture import Handler

Read = Callable[[int, int], bytes]

MAX_TABLE: Final = 256 * 16
_BEGINNING: Final = re.compile(
    rb"(?=(?:\xf3\x0f\x1e\xfa)?(?:\x0f\x01\xf8.{0,8}?)?(?:\x65\x48\x89\x24\x25|\x65\x48\x89\x25|\x48\x89\x25))",
    re.DOTALL,
)
"""How a system call's entry begins: ``endbr64`` or not, ``swapgs`` or not, and RSP put away at a fixed address."""
_MOV_LSTAR: Final = b"\xb9" + MSR_LSTAR.to_bytes(4, "little")
_PREAMBLE: Final = 24
"""Bytes of an entry up to where RSP is put away, at most."""
_LOOK: Final = Limits(instructions=4_000, calls=1)


def handlers(read: Read, base: int, limit: int, bits: int) -> list[Handler]:
    """The handlers that the present gates of the IDT at `base` name, in order of their first vector.

    Empty if the table is unmapped or no gate leads to mapped memory.
    """
    try:
        table = read(base, min(limit + 1, MAX_TABLE))
    except OSError:
        return []
    return of_table(table, bits)


def of_table(table: bytes, bits: int) -> list[Handler]:
    """The handlers in raw IDT bytes."""
    found: dict[int, Handler] = {}
    for gate in decode_idt(table, bits):
        if gate.offset == 0 or (bits == 64 and not is_canonical(gate.offset)):
            continue
        known = found.get(gate.offset)
        found[gate.offset] = Handler(
            gate.offset,
            (*(known.vectors if known else ()), gate.vector),
            known.ist if known else gate.ist,
            gate.dpl == 3 or (known is not None and known.callable),
        )
    return list(found.values())


def entries(found: Iterable[Handler], syscalls: Iterable[int], sysenters: Iterable[int]) -> list[Entry]:
    """The same as the code layer's entry points."""
    points = [
        Entry(h.address, Gateway.INTERRUPT, h.vectors[0], h.ist, h.vectors[0] in vectors.WITH_ERROR_CODE) for h in found
    ]
    points += [Entry(address, Gateway.SYSCALL, vectors.SYSCALL) for address in syscalls]
    points += [Entry(address, Gateway.SYSENTER, vectors.SYSENTER) for address in sysenters]
    return points


def syscall_entries(read: Read, image: Iterable[tuple[int, bytes]], bits: int) -> list[int]:
    """Where ``syscall`` most likely enters, from the kernel's code alone: for a debugger that came when LSTAR was
    written already, which no protocol shows.

    `image`: (guest virtual address, bytes) stretches of executable memory, the first of which that tells is believed.
    Addresses put into LSTAR by constants come first; without any, code that begins as such an entry must. Either way
    a ``sysret`` must be reached from it.
    """
    if bits != 64:
        return []
    code = Code(read, bits)
    for start, data in image:
        for candidates in (_by_constant(code, start, data), _by_beginning(start, data)):
            good = [address for address in sorted(candidates) if _reaches_exit(code, address)]
            if good:
                # What follows the first instructions of an entry looks like the beginning of one.
                return [a for a in good if not any(a - _PREAMBLE <= before < a for before in good)]
    return []


def _by_constant(code: Code, start: int, data: bytes) -> set[int]:
    """Constants loaded near a ``mov $LSTAR, %ecx`` that are kernel addresses."""
    found = set()
    at = data.find(_MOV_LSTAR)
    while at >= 0:
        found |= _constants_around(code, start + at)
        at = data.find(_MOV_LSTAR, at + 1)
    return found


def _constants_around(code: Code, address: int) -> set[int]:
    """Kernel addresses loaded by the instructions around the one at `address`, up to the ``wrmsr`` behind it."""
    found = set()
    for begin in range(address - 32, address + 1):
        at = begin
        for _ in range(24):
            insn = code.insn(at)
            if insn is None or insn.name == "wrmsr":
                break
            source = insn.source
            if insn.name in ("mov", "movabs") and isinstance(insn.destination, Reg) and isinstance(source, Imm):
                value = source.value & ((1 << 64) - 1)
                found |= {value, value | 0xFFFF_FFFF_0000_0000}
            elif insn.name == "lea" and isinstance(source, Mem) and source.constant:
                found.add(source.disp)
            at = insn.end
    return {value for value in found if is_high_half(value) and is_canonical(value) and code.insn(value)}


def _by_beginning(start: int, data: bytes) -> set[int]:
    return {start + match.start() for match in _BEGINNING.finditer(data)}


def _reaches_exit(code: Code, address: int) -> bool:
    """True if a system call can begin at `address`: RSP is put away within a few instructions, an exit is reached."""
    at = address
    for _ in range(6):
        insn = code.insn(at)
        if insn is None:
            return False
        if isinstance(insn.destination, Mem) and isinstance(insn.source, Reg) and insn.source.name == "rsp":
            break
        at = insn.end
    else:
        return False
    reach = explore(code, [Entry(address, Gateway.SYSCALL)], _LOOK)
    return any(way.how == "sysret" for way in reach.exits)
