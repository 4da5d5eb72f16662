"""GDB's symbols, taken out of it: GDB itself may be asked by its own thread alone."""

from __future__ import annotations

import bisect
import re
from itertools import zip_longest
from typing import Final

import gdb

from gdbext.errors import printable
from gdbext.qemu.images import Symbol, Symbols

_LINE: Final = re.compile(r"^\[ *\d+\] [tTdDbBS] (0x[0-9a-f]+) (?:\[[^]]*\] )?(\S+)", re.MULTILINE)
"""A line of ``maint print msymbols``: number, type (text, data, bss), address, name."""
_SECTION: Final = re.compile(r"^\s*(0x[0-9a-f]+) - (0x[0-9a-f]+) is ", re.MULTILINE)
"""A line of ``info files``: where a section lies in the guest's memory."""


def snapshot() -> Symbols:
    """All names GDB has now, with the addresses it has them at."""
    try:
        text = str(gdb.execute("maint print msymbols", to_string=True))
        files = str(gdb.execute("info files", to_string=True))
    except gdb.error:
        return Symbols()
    sections = sorted((int(low, 16), int(high, 16)) for low, high in _SECTION.findall(files))
    names: dict[int, str] = {}
    for address, name in _LINE.findall(text):
        names.setdefault(int(address, 16), printable(name))
    symbols = []
    starts = sorted(names)
    for start, after in zip_longest(starts, starts[1:], fillvalue=1 << 64):
        end = _end(start, sections)
        if end is not None:  # absolute ones name no place
            symbols.append(Symbol(start, min(after, end), names[start]))
    return Symbols(symbols)


def _end(address: int, sections: list[tuple[int, int]]) -> int | None:
    """The end of the section that `address` lies in, or None."""
    index = bisect.bisect_right(sections, (address, 1 << 64)) - 1
    return sections[index][1] if index >= 0 and address < sections[index][1] else None
