"""A ring that its reader has left, read as a recording: the last events of a guest, as a flight recorder keeps them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from gdbext.errors import CtxwatchError, RecordingError
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, How, Kind, empty, pick
from gdbext.recording import schema as columns
from gdbext.recording.header import Header
from gdbext.recording.mark import Mark, Unit
from gdbext.sources.base import Capability
from gdbext.sources.leftover import LeftoverSource
from gdbext.sources.ring import MAGIC as RING_MAGIC

MAGIC: Final = RING_MAGIC.to_bytes(8, "little")
ROWS: Final = 32_768
"""Events in a batch."""

Bools = npt.NDArray[np.bool_]


class LeftoverFile:
    """The events in the ring at `path` as they are now; a guest that still runs goes on overwriting them.

    Raises RecordingError.
    """

    end: Mark | None = None

    def __init__(self, path: Path, fd: int) -> None:
        try:
            source = LeftoverSource(path)
        except RecordingError:
            raise
        except CtxwatchError as error:
            raise RecordingError(error.what, error.why) from error
        os.close(fd)
        self.simd = Capability.SIMD in source.capabilities
        self.header = Header(guest="unknown", source="probe", identity={"ring": str(path)})
        self.schema = columns.schema(self.simd, self.header.metadata())
        rows = source.read(0)
        found = rows if rows is not None else empty(0, simd=self.simd)
        sound = _sound(found)
        self._rows: Batch = found if sound.all() else pick(found, np.flatnonzero(sound))
        flaws = [f"the {source.lost} events before these were overwritten"] if source.lost else []
        flaws += [f"{np.count_nonzero(~sound)} damaged rows are left out"] if not sound.all() else []
        self.flaw = " and ".join(flaws) or None

    def units(self) -> Iterator[tuple[Columns, Mark]]:
        """All events, a batch at a time."""
        for unit in self.index():
            yield Columns(self.batch(unit)), unit.mark

    def index(self) -> list[Unit]:
        """The batches' places and marks."""
        return [Unit(start, self._mark(start)) for start in range(0, len(self._rows), ROWS)]

    def batch(self, unit: Unit) -> Batch:
        """The events of one batch."""
        assert unit.place is not None
        return self._rows[unit.place : unit.place + ROWS]

    def _mark(self, start: int) -> Mark:
        numbers = self._rows["seq"][start : start + ROWS]
        return Mark(len(numbers), int(np.min(numbers)), int(np.max(numbers)))

    def close(self) -> None:
        """Nothing is held."""


def _sound(rows: Batch) -> Bools:
    """Which rows can be events: nothing else tells of a ring whether it was damaged."""
    known = np.isin(rows["kind"], list(Kind.NAMES)) & np.isin(rows["how"], list(How.NAMES))
    sound: Bools = known & (rows["seq"] < columns.ENDLESS) & (rows["time"] < columns.ENDLESS)
    return sound
