"""What the rules may ask of a guest that runs: its memory and its names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from gdbext.errors import CtxwatchError
from gdbext.qemu.images import Image
from gdbext.qemu.machine import Machine
from gdbext.sources.base import Source


class LiveGuest:
    """The engine's view of the guest: live memory where it can be had, else what the image holds; the image's names."""

    def __init__(self, machine: Machine, source: Source, image: Image | None) -> None:
        self._readers: list[Callable[[int, int], bytes]] = [source.read_memory, machine.read_memory]
        if image is not None:
            self._readers.append(image.read)
        self._symbols = image.symbols if image is not None else None

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes of guest virtual memory at `address`; raises OSError where nobody can read all of them."""
        for reader in self._readers:
            with contextlib.suppress(OSError, CtxwatchError):
                return reader(address, length)
        raise OSError(f"{address:#x} cannot be read")

    def symbol(self, address: int) -> str | None:
        """What the image calls guest virtual `address`, or None."""
        return self._symbols.name(address) if self._symbols is not None else None
