"""The interrupt descriptor tables in use, followed as CPUs load them and the kernel changes their gates. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gdbext.arch.descriptors import decode_idt
from gdbext.gdb import discover
from gdbext.gdb.capture import Handler

Read = Callable[[int, int], bytes]


@dataclass(slots=True)
class _Table:
    limit: int
    bits: int
    raw: bytes = b""


class Tables:
    """Per vCPU the IDT it uses; tables that no vCPU uses any more are forgotten."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._base_of: dict[int, int] = {}
        self._tables: dict[int, _Table] = {}

    def load(self, cpu: int, base: int, limit: int, bits: int) -> None:
        """vCPU `cpu` loads the table at `base` (guest linear address)."""
        self._base_of[cpu] = base
        self._tables[base] = _Table(limit, bits)
        for unused in self._tables.keys() - set(self._base_of.values()):
            del self._tables[unused]

    def base_of(self, cpu: int) -> int | None:
        """Where the table of vCPU `cpu` lies, as far as it was seen loaded (guest linear address)."""
        return self._base_of.get(cpu)

    def clear(self) -> None:
        """The machine was reset."""
        self._base_of.clear()
        self._tables.clear()

    def refresh(self) -> bool:
        """Read the tables again; True if a gate changed."""
        changed = False
        for base, table in self._tables.items():
            try:
                raw = self._read(base, min(table.limit + 1, discover.MAX_TABLE))
            except OSError:
                continue
            if raw != table.raw:
                table.raw = raw
                changed = True
        return changed

    @property
    def bits(self) -> int:
        """Mode of the handlers: that of the table loaded last."""
        return next((table.bits for table in reversed(self._tables.values())), 64)

    def handlers(self) -> list[Handler]:
        """The handlers of all tables in use."""
        found: dict[int, Handler] = {}
        for table in self._tables.values():
            for handler in discover.of_table(table.raw, table.bits):
                found.setdefault(handler.address, handler)
        return list(found.values())

    def selectors(self) -> set[int]:
        """The code segments of the handlers of all tables in use."""
        return {gate.selector for table in self._tables.values() for gate in decode_idt(table.raw, table.bits)}

    def describe(self) -> list[tuple[int, int]]:
        """(base, limit) of each table in use."""
        return [(base, table.limit) for base, table in self._tables.items()]
