"""The guest as the rules see it: remembered while a recording is made, given back while it is replayed."""

from __future__ import annotations

import re
from typing import Final

from gdbext.errors import printable
from gdbext.recording.mark import Mark, MemoryRead
from gdbext.rules.guest import GuestView

PAGE: Final = 4096
_INSIDE: Final = re.compile(r"(.+)\+(0x[0-9a-f]+)", re.DOTALL)
"""The name of a place inside a function. Names of C++ may hold further plus signs."""


class RememberingGuest:
    """Passes every question on to `guest` and keeps the answers until they are taken into a mark."""

    def __init__(self, guest: GuestView) -> None:
        self._guest = guest
        self._memory: dict[MemoryRead, bytes | None] = {}
        self._names: dict[int, str | None] = {}
        self._new_memory: dict[MemoryRead, bytes | None] = {}
        self._new_names: dict[int, str | None] = {}

    def read(self, address: int, length: int) -> bytes:
        """As :meth:`GuestView.read`."""
        try:
            data = self._guest.read(address, length)
        except OSError:
            self._remember((address, length), None)
            raise
        self._remember((address, length), bytes(data))
        return data

    def symbol(self, address: int) -> str | None:
        """As :meth:`GuestView.symbol`."""
        if address not in self._names:
            self._names[address] = self._new_names[address] = self._guest.symbol(address)
        return self._names[address]

    def take(self) -> tuple[dict[MemoryRead, bytes | None], dict[int, str | None]]:
        """What was learnt since the last call: memory and names."""
        learnt = self._new_memory, self._new_names
        self._new_memory, self._new_names = {}, {}
        return learnt

    def _remember(self, key: MemoryRead, data: bytes | None) -> None:
        if key not in self._memory or self._memory[key] != data:
            self._memory[key] = self._new_memory[key] = data


class RecordedGuest:
    """Answers from what was recorded: the same reads as in the live run get the same answers at the same events.

    Other reads are put together from what was read anywhere; what was not captured is refused with OSError.
    """

    def __init__(self) -> None:
        self._reads: dict[MemoryRead, bytes | None] = {}
        self._pages: dict[int, tuple[bytearray, bytearray]] = {}
        self._names: dict[int, str | None] = {}

    def answered_otherwise(self, mark: Mark) -> bool:
        """True if `mark` has another answer to a question than was learnt before."""
        before = self._reads
        return any(key in before and before[key] != data for key, data in mark.memory.items())

    def learn(self, mark: Mark) -> None:
        """Take in what a mark brings."""
        self._names |= mark.names
        self._reads |= mark.memory
        for (address, _), data in mark.memory.items():
            if data is not None:
                self._store(address, data)

    def read(self, address: int, length: int) -> bytes:
        """Guest virtual memory; fewer bytes where the rest was not captured, OSError where nothing was."""
        if (address, length) in self._reads:
            data = self._reads[address, length]
            if data is None:
                raise OSError(f"{address:#x} was unmapped when it was recorded")
            return data
        data = self._gather(address, length)
        if not data:
            raise OSError(f"memory at {address:#x} was not captured")
        return data

    def symbol(self, address: int) -> str | None:
        """The name of `address` as ``function+0x12``, if it was asked for while recording."""
        return self._names.get(address)

    def address(self, function: str) -> int | None:
        """The address of a function of which some place was named while recording."""
        for at, name in self._names.items():
            if name is None:
                continue
            start, offset = _parts(name)
            if printable(start) == printable(function):
                return at - offset
        return None

    def functions(self) -> list[str]:
        """The functions that :meth:`address` knows, their names escaped."""
        return sorted({printable(_parts(name)[0]) for name in self._names.values() if name is not None})

    def _store(self, address: int, data: bytes) -> None:
        while data:
            start = address - address % PAGE
            content, known = self._pages.setdefault(start, (bytearray(PAGE), bytearray(PAGE)))
            part = data[: start + PAGE - address]
            where = slice(address - start, address - start + len(part))
            content[where] = part
            known[where] = b"\1" * len(part)
            address, data = address + len(part), data[len(part) :]

    def _gather(self, address: int, length: int) -> bytes:
        parts: list[bytes] = []
        while length > 0:
            start = address - address % PAGE
            content, known = self._pages.get(start, (b"", b""))
            offset = address - start
            end = known.find(b"\0", offset)
            stop = min(len(known) if end < 0 else end, offset + length)
            if stop <= offset:
                break
            parts.append(bytes(content[offset:stop]))
            length -= stop - offset
            address += stop - offset
            if address % PAGE:
                break
        return b"".join(parts)


def _parts(name: str) -> tuple[str, int]:
    """The function that ``function+0x12`` lies in, and how far in."""
    inside = _INSIDE.fullmatch(name)
    return (inside[1], int(inside[2], 16)) if inside is not None else (name, 0)
