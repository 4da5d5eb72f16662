"""A ring whose reader is gone, as a source: the last events of a flight recorder."""

from __future__ import annotations

from pathlib import Path

from gdbext.errors import NotCapable
from gdbext.events.row import Batch
from gdbext.sources.base import Capability
from gdbext.sources.ring import Option
from gdbext.sources.ring_file import RingFile, in_order


class LeftoverSource:
    """The events still in a ring, which stays as it is."""

    name = "ring"
    capabilities = Capability.NONE

    def __init__(self, path: Path) -> None:
        """Raises RecordingError when `path` is not a ring that can be read."""
        ring = RingFile.open_leftover(path)
        try:
            old = ring.history()
            self.lost = int(ring.control["overwritten"].sum())
            if ring.has(Option.SIMD):
                self.capabilities |= Capability.SIMD
        finally:
            ring.close()
        self._rows = in_order(old)

    def read(self, timeout: float) -> Batch | None:
        """All events, once; then None."""
        rows, self._rows = self._rows, None
        return rows

    def release(self, cpu: int, halt: bool) -> None:
        """Nothing waits in a leftover ring."""
        raise NotCapable("releasing a vCPU", "the events come from a leftover ring")

    def read_memory(self, address: int, length: int, cpu: int = 0) -> bytes:
        """Memory is not in a ring."""
        raise NotCapable("reading memory", "the events come from a leftover ring")

    def close(self) -> None:
        """End the stream."""
        self._rows = None
