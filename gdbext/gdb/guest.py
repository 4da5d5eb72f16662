"""The guest as the rules may look at it, through GDB."""

from __future__ import annotations

import re

import gdb

from gdbext.errors import printable
from gdbext.gdb.target import Target


class GdbGuest:
    """Memory from the target, names from GDB's symbols (which may come from a file or a symbol server)."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def read(self, address: int, length: int) -> bytes:
        """Guest virtual memory; raises OSError where it is unmapped."""
        return self._target.read(address, length)

    def symbol(self, address: int) -> str | None:
        """``function+0x12``, or None where GDB knows no name."""
        return symbol(address)


def symbol(address: int) -> str | None:
    """The name of a guest virtual address by GDB's symbols."""
    if not 0 <= address < 1 << 64:
        return None
    try:
        described = gdb.execute(f"info symbol {address:#x}", to_string=True)
    except gdb.error:
        return None
    # "start + 18 in section .text of file", or "No symbol matches 0x12."
    name, found, _ = described.partition(" in section ")
    if not found:
        return None
    function, plus, offset = name.rpartition(" + ")
    return printable(f"{function}+{int(offset):#x}" if plus and offset.isdecimal() else name)


def named(address: int) -> str:
    """``0xffffffff801029f5 <restore_context+0x86>``."""
    name = symbol(address)
    return f"{address:#x} <{name}>" if name else f"{address:#x}"


def address_of(name: str) -> int | None:
    """The guest virtual address of a symbol, or None where GDB knows none of that name."""
    try:
        found = gdb.execute(f"info address {name}", to_string=True) if name.isidentifier() else ""
    except gdb.error:
        return None
    address = re.search(r"\b0x[0-9a-f]+\b", found)
    return int(address[0], 16) if address else None


class GdbNames:
    """The addresses of names, by GDB's symbols."""

    def address(self, name: str) -> int | None:
        """See :func:`address_of`."""
        return address_of(name)
