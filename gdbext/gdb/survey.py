"""What a guest that stands still tells of its entries: tables from the monitor, system-call entries from its code.

:func:`learn` fills a Machine once; :class:`Survey` keeps one up to date for a GDB that does not watch, so that the
windows are known whenever somebody wants to step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from gdbext.code.windows import Window
from gdbext.gdb import discover, image, target
from gdbext.gdb.image import Segment
from gdbext.gdb.machine import Machine
from gdbext.gdb.target import Idtr, Target

_SCAN_LIMIT: Final = 32 << 20
"""Bytes of executable memory searched for a system-call entry at most."""
_STRETCH: Final = 1 << 21
_CHUNK: Final = 1 << 16
_PAGE: Final = 1 << 12
_LARGE_PAGE: Final = 1 << 21


def learn(guest: Target, machine: Machine, kernel: list[Segment]) -> bool:
    """Fill `machine` with what the selected vCPU's table leads to; False if it has loaded none yet.

    kernel: the executable segments of the image, if there is one: they spare the reading of the guest's memory.
    """
    idtr, bits = _idtr(guest)
    if idtr is None or not discover.handlers(guest.read, idtr.base, idtr.limit, bits):
        return False
    machine.tables.load(guest.cpu(), idtr.base, idtr.limit, bits)
    machine.tables.refresh()
    machine.syscalls.update(discover.syscall_entries(guest.read, _executable(guest, machine, kernel), bits))
    machine.update()
    return True


def follow(guest: Target, machine: Machine, kernel: list[Segment]) -> None:
    """Learn if the selected vCPU has loaded a table, or another, by code that nobody knew of: firmware moves itself."""
    idtr = _idtr(guest)[0] if machine.reach is not None else None
    if machine.reach is None or (idtr is not None and idtr.base != machine.tables.base_of(guest.cpu())):
        learn(guest, machine, kernel)


class Survey:
    """The windows of the guest GDB is connected to, looked up when asked for.

    A survey belongs to one connection. What was found is kept until the table of the selected vCPU or a gate in it
    changes.
    """

    def __init__(self, guest: Target, kernel: Path | None) -> None:
        self.target = guest
        self._image = image.segments(kernel) if kernel else []
        self._known: Idtr | None = None
        self.machine = Machine(guest.read, self._image)

    def windows(self) -> list[Window]:
        """The windows as the guest's code has them now; empty while it has no table. The target must be stopped."""
        idtr, _ = _idtr(self.target)
        if idtr is None:
            return []
        if idtr != self._known:
            self.machine = Machine(self.target.read, self._image)
            self._known = idtr if learn(self.target, self.machine, self._image) else None
        elif self.machine.tables.refresh():
            self.machine.update()
        return self.machine.windows


def _idtr(guest: Target) -> tuple[Idtr | None, int]:
    """The selected vCPU's IDTR, None in real mode or where the monitor does not tell, and the handlers' mode."""
    bits = target.mode(guest.registers())
    return (guest.idtr() if bits != 16 else None), bits


def _executable(guest: Target, machine: Machine, kernel: Iterable[Segment]) -> Iterator[tuple[int, bytes]]:
    """The kernel's code: the image's segments if they lie where they were linked, else the memory around the
    handlers."""
    left = _SCAN_LIMIT
    for segment in kernel:
        try:
            here = guest.read(segment.virtual, 16)
        except OSError:
            continue
        if here == segment.data[:16]:
            left = 0
            yield segment.virtual, segment.data
    for start in _code_starts(guest, machine) if left else ():
        while left > 0:
            data = _read_mapped(guest, start, _STRETCH)
            yield start, data
            left -= len(data)
            start += len(data)
            if len(data) < _STRETCH:
                break


def _code_starts(guest: Target, machine: Machine) -> list[int]:
    """Where the memory that holds the handlers begins: the 2 MB page if all of it is mapped, else the 4 KB page."""
    starts = {}
    for address in sorted(handler.address for handler in machine.tables.handlers()):
        large = address & ~(_LARGE_PAGE - 1)
        if large not in starts:
            try:
                guest.read(large, 1)
                starts[large] = large
            except OSError:
                starts[large] = address & ~(_PAGE - 1)
    return sorted(starts.values())


def _read_mapped(guest: Target, start: int, length: int) -> bytes:
    """Memory from `start` (a page's) up to `length` bytes on or to the first page that is not mapped."""
    data = bytearray()
    step = _CHUNK
    while len(data) < length:
        try:
            data += guest.read(start + len(data), step)
        except OSError:
            if step == _PAGE:
                break
            step = _PAGE
    return bytes(data)
