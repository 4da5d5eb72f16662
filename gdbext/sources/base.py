"""The interface that every source of events implements, and what it may be able to do beyond it.

A source is opened by its constructor, read until it ends and closed. What it cannot do it refuses by name
(:class:`gdbext.errors.NotCapable`), so that callers ask for capabilities and never for a kind of source.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Flag, auto
from typing import Final, Protocol

from gdbext.events.row import Batch

NO_WATCHPOINTS: Final = "stores cannot be watched through gdbstub"


class Capability(Flag):
    """What a source can do besides delivering batches."""

    NONE = 0
    MEMORY = auto()  # read_memory works
    HALT = auto()  # a waiting vCPU can be held on the resumed context's first instruction
    STORES = auto()  # stores into watched ranges are seen
    FEW_STORES = auto()  # likewise, but each stops the guest: few ranges, and none where the CPU pushes frames
    SIMD = auto()  # XMM/MXCSR/x87 can be captured
    GS_ACCESS = auto()  # gs: accesses with the wrong base are seen at the access
    SWITCHES = auto()  # voluntary stack switches are seen


class Source(Protocol):
    """A stream of event batches."""

    name: str
    capabilities: Capability

    def read(self, timeout: float) -> Batch | None:
        """Return the next batch (possibly empty after `timeout` seconds), or None when the stream has ended."""

    def release(self, cpu: int, halt: bool) -> None:
        """Let vCPU `cpu`, which stands in a row with Flag.WAITING, go on; with `halt`, stop the guest there."""

    def read_memory(self, address: int, length: int, cpu: int = 0) -> bytes:
        """Read guest virtual memory as vCPU `cpu` sees it; raises NotCapable, or OSError where it is unmapped."""

    def set_watch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Report stores into these guest virtual ranges (start, end exclusive) from now on; raises NotCapable."""

    @property
    def lost(self) -> int:
        """Events known to be lost so far."""

    def close(self) -> None:
        """End the stream; idempotent."""
