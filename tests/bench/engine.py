"""How fast the rules judge, live and from a file, and whether they forget: a recorded boot, over and over.

The work is done in parts that are timed each, since the machine's speed may change meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from gdbext.events.row import Batch
from gdbext.recording.reader import Recording
from gdbext.recording.replay import Replay
from gdbext.recording.writer import Recorder
from gdbext.rules.engine import Engine

WARM: Final = 0.1
"""Part of the events after which memory counts: caches and the ledger are then as large as they get."""
PARTS: Final = 10
"""How many parts of the events are timed each."""
REPLAYS: Final = 3
"""How often a recording is replayed in each way."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Pace:
    """events: judged in all.  rates: events a second of one core, of each part.  growth: bytes memory grew by after the
    first WARM."""

    events: int
    rates: list[float]
    growth: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """bytes: of the recording, an event.  rates: events a second on one core, of each replay.  walls: a second of time,
    with another core free to decode."""

    bytes: float
    rates: list[float]
    walls: list[float]


def pace(recording: Path, events: int) -> Pace:
    """Judge the events of `recording` again and again until `events` have been, with all rules."""
    opened = Recording(recording)
    try:
        batches = [batch.copy() for batch in opened.batches()]
        engine = Engine(opened.header.policy, guest=opened.guest)
    finally:
        opened.close()
    done, warm = 0, 0
    part, judging, rates = 0, 0.0, []
    for batch in _again(batches, events):
        began = time.process_time()
        engine.feed(batch)
        judging += time.process_time() - began
        done, part = done + len(batch), part + len(batch)
        if not warm and done >= events * WARM:
            warm = _resident()
        if part >= events / PARTS or done >= events:
            rates.append(part / judging)
            part, judging = 0, 0.0
    return Pace(done, rates, _resident() - warm)


def replayed(recording: Path, events: int, scratch: Path) -> Replayed:
    """Write a recording of `events`, those of `recording` again and again, and replay it, both ways in turn."""
    path = scratch / "long.arrow"
    _write(recording, events, path)
    rates, walls = [], []
    for _ in range(REPLAYS):
        done, processor, _ = _replay(path, threaded=False)
        _, _, wall = _replay(path, threaded=True)
        rates.append(done / processor)
        walls.append(done / wall)
    size = path.stat().st_size
    path.unlink()
    return Replayed(size / done, rates, walls)


def _replay(path: Path, *, threaded: bool) -> tuple[int, float, float]:
    """Replay all of it: (events, processor time in seconds, time in seconds)."""
    with Recording(path, threaded=threaded) as opened:
        work = Replay(opened)
        wall, processor = time.monotonic(), time.process_time()
        done = sum(len(batch) for batch, _ in work.steps())
        return done, time.process_time() - processor, time.monotonic() - wall


def _write(recording: Path, events: int, path: Path) -> None:
    with Recording(recording) as opened:
        batches = [batch.copy() for batch in opened.batches()]
        assert opened.end is not None
        with Recorder(path, opened.header, opened.guest, print) as recorder:
            engine = Engine(opened.header.policy, guest=recorder.guest)  # what it asks of the guest is recorded, too
            for number, batch in enumerate(_again(batches, events)):
                if number < len(batches):
                    engine.feed(batch)
                recorder.write(batch)
            recorder.close(opened.end.end or {})


def _again(batches: list[Batch], events: int) -> Iterator[Batch]:
    """The batches in turn, numbered on and on, until there were `events`."""
    last = int(batches[-1]["seq"].max())
    duration = int(batches[-1]["time"][-1] - batches[0]["time"][0]) + 1
    done = turn = 0
    while done < events:
        for batch in batches:
            yield batch
            done += len(batch)
            batch["seq"] += np.uint64(last)
            batch["match"][batch["match"] != 0] += np.uint64(last)
            batch["time"] += np.uint64(duration)
            if done >= events:
                return
        turn += 1


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
