"""A long recording made of a short one: its events again and again, with numbers and times that go on.

``python -m tests.recording.repeat IN OUT EVENTS`` makes one to measure with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from gdbext.events.row import Batch, Kind, concat
from gdbext.recording.reader import Recording
from gdbext.recording.writer import ROWS, Recorder
from gdbext.rules.guest import NoGuest


def repeat(source: Path, target: Path, events: int) -> int:
    """Write at least `events` events made of those in `source`; returns how many."""
    with Recording(source) as recording:
        rows = concat([batch.copy() for batch in recording.batches()])
        header, end = recording.header, recording.end
    assert end is not None
    numbers = int(rows["seq"].max()) + 1 - int(rows["seq"].min())
    duration = int(rows["time"].max()) - int(rows["time"].min()) + 1000
    written = 0
    with Recorder(target, header, NoGuest(), print) as recorder:
        while written < events:
            for start in range(0, len(rows), ROWS):
                recorder.write(rows[start : start + ROWS])
            written += len(rows)
            _shift(rows, numbers, duration)
        assert recorder.close(end.end or {})
    return written


def _shift(rows: Batch, numbers: int, duration: int) -> None:
    """Move the events behind themselves."""
    rows["seq"] += np.uint64(numbers)
    rows["time"] += np.uint64(duration)
    paired = (rows["match"] != 0) & np.isin(rows["kind"], (Kind.EXIT, Kind.SWITCH_IN))
    rows["match"][paired] += np.uint64(numbers)


if __name__ == "__main__":
    print(repeat(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
