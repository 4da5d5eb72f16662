"""GDB's symbols, taken out of it: GDB itself may be asked by its own thread alone."""

from __future__ import annotations

import re
from typing import Final

import gdb

from gdbext.errors import printable
from gdbext.qemu.images import Symbol, Symbols

_LINE: Final = re.compile(r"^\[ *\d+\] [tTdDbBS] (0x[0-9a-f]+) (?:\[[^]]*\] )?(\S+)", re.MULTILINE)
"""A line of ``maint print msymbols``: number, type (text, data, bss), address, name."""
_LAST: Final = 4096
"""Bytes the last symbol is taken to have."""


def snapshot() -> Symbols:
    """All names GDB has now, with the addresses it has them at."""
    try:
        text = str(gdb.execute("maint print msymbols", to_string=True))
    except gdb.error:
        return Symbols()
    names: dict[int, str] = {}
    for address, name in _LINE.findall(text):
        names.setdefault(int(address, 16), printable(name))
    starts = sorted(names)
    ends = [*starts[1:], (starts[-1] + _LAST) if starts else 0]
    return Symbols(Symbol(start, end, names[start]) for start, end in zip(starts, ends, strict=True))
