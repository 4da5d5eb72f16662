"""A kernel's exception table: where code goes on after an exception that it foresaw (Linux's ``__ex_table``)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from gdbext.arch import vectors
from gdbext.arch.addresses import MASK64

ALIGN: Final = 1 << 21
"""KASLR moves a kernel by whole multiples of this (Linux, CONFIG_PHYSICAL_ALIGN at least)."""
REACH_SHIFT: Final = 30
"""KASLR keeps a 64-bit kernel within its gigabyte; what is outside (modules) has tables of its own."""
EMULATED: Final = (vectors.DB, vectors.BP, vectors.UD)
"""Exceptions after which kernel code goes on elsewhere without a table: warnings, code that is being patched."""


@dataclass(frozen=True)
class Fixups:
    """The table: (faulting instruction, where it goes on), guest virtual addresses as linked."""

    pairs: frozenset[tuple[int, int]]
    _steps: dict[int, set[int]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for instruction, fixup in self.pairs:
            self._steps.setdefault(instruction % ALIGN, set()).add((fixup - instruction) & MASK64)

    def lead(self, vector: int, instruction: int, to: int) -> bool:
        """True unless the table shows that an exception `vector` at `instruction` does not go on at `to`."""
        steps = self._steps.get(instruction % ALIGN)
        if vector in EMULATED or (steps is None and not self._complete(instruction)):
            return True
        return steps is not None and (to - instruction) & MASK64 in steps

    def _complete(self, instruction: int) -> bool:
        """True if `instruction` would stand in the table: not a module's, for which 32-bit kernels have no place."""
        known = next(iter(self.pairs), (0, 0))[0]
        return known >> 32 != 0 and known >> REACH_SHIFT == instruction >> REACH_SHIFT


def parse(address: int, table: bytes, bits: int) -> Iterator[tuple[int, int]]:
    """The pairs of the section `table`, linked at `address`: entries of three 32-bit words, the first two relative to
    themselves (Linux, asm/extable.h; the third says what else the fixup does)."""
    mask = (1 << bits) - 1
    for at in range(0, len(table) - 11, 12):
        first, second = struct.unpack_from("<ii", table, at)
        yield (address + at + first) & mask, (address + at + 4 + second) & mask
