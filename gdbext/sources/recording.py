"""The source of events that reads a recording: it has no guest, so it delivers, and gives back the memory captured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from gdbext.errors import NotCapable
from gdbext.events.row import Batch
from gdbext.rules.guest import GuestView
from gdbext.sources.base import Capability


class Recorded(Protocol):
    """What a recording is to a source."""

    @property
    def simd(self) -> bool:
        """SIMD state was recorded."""

    @property
    def guest(self) -> GuestView:
        """Memory and names that were captured."""

    def batches(self) -> Iterator[Batch]:
        """Each batch in order; ``guest`` knows what was captured up to it."""

    def close(self) -> None:
        """Close the file; idempotent."""


class RecordingSource:
    """Delivers the batches of a recording; what takes a machine is refused by name."""

    name = "recording"

    def __init__(self, recording: Recorded) -> None:
        self._recording = recording
        self._batches = recording.batches()
        self.capabilities = Capability.MEMORY | (Capability.SIMD if recording.simd else Capability.NONE)

    def read(self, timeout: float) -> Batch | None:
        """The next batch, at once; None at the end of what can be read."""
        return next(self._batches, None)

    def release(self, cpu: int, halt: bool) -> None:
        """Nothing waits in a recording; to halt is refused."""
        if halt:
            raise NotCapable("a recording cannot be halted", "its guest ran before", "run the guest with --halt")

    def read_memory(self, address: int, length: int, cpu: int = 0) -> bytes:
        """Memory that was captured when it was recorded; raises OSError for any other."""
        return self._recording.guest.read(address, length)

    def set_watch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Refused: the stores that were watched are in the recording."""
        raise NotCapable("a recording cannot watch other memory", "its guest ran before", "record it again")

    @property
    def lost(self) -> int:
        """Reading loses nothing; what the recorder lost stands in the recording's end."""
        return 0

    def close(self) -> None:
        """Close the recording; idempotent."""
        self._recording.close()
