"""Stores into hardware frames that are followed: who changed a word of a live one.

A frame is followed once one was found overwritten at its address: a thread's entries push theirs at one place, so
that the next time it happens the store is seen. The source is asked to watch it (``AreaWatcher.follow``).
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

from gdbext.arch.frames import FRAME_FIELDS, word_size, words_pushed
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Flag, Kind
from gdbext.rules.areas import Write
from gdbext.rules.draft import Judged

MAX_FRAMES: Final = 64
KEPT: Final = 64
"""Stores kept for each word."""


def frame_span(entry: Batch) -> tuple[int, int]:
    """Where the frame of the ENTRY row `entry` (a batch of one) lies: first byte and the one behind it."""
    start, size = int(entry["frame"][0]), word_size(int(entry["mode"][0]))
    same_ring = bool(entry["flags"][0] & Flag.NO_STACK)
    return start, start + size * words_pushed(int(entry["mode"][0]), 0 if same_ring else 3, 0)


class FrameStores:
    """Keeps the last stores into each word of the frames followed."""

    def __init__(self) -> None:
        self._words: dict[int, deque[Write]] = {}
        self.spans: dict[int, int] = {}
        """First byte of each frame followed, and the one behind it."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Note the stores of a batch; nothing is judged."""
        if self._words:
            for index in np.flatnonzero(batch["kind"] == Kind.STORE):
                word = self._words.get(int(batch["addr"][index]))
                if word is not None:
                    row = batch.row(int(index))
                    word.append(Write(*(int(row[name][0]) for name in ("seq", "cpu", "pc", "value"))))
        return []

    def follow(self, entry: Batch) -> None:
        """Keep, from now on, the stores into the frame of the ENTRY row `entry` (a batch of one)."""
        start, end = frame_span(entry)
        if start and start not in self.spans and len(self.spans) < MAX_FRAMES:
            self.spans[start] = end
            for at in range(start, end, word_size(int(entry["mode"][0]))):
                self._words.setdefault(at, deque(maxlen=KEPT))

    def change(self, entry: Batch, leaving: Batch, field: str) -> Write | None:
        """The first store that put what `leaving` resumes as `field` into the frame of `entry`; None if unseen."""
        word = word_size(int(entry["mode"][0]))
        at = int(entry["frame"][0]) + FRAME_FIELDS.index(field) * word
        first, last, value = int(entry["seq"][0]), int(leaving["seq"][0]), int(leaving[field][0])
        mask = (1 << 8 * word) - 1
        return next(
            (w for w in self._words.get(at, ()) if first < w.event < last and w.value & mask == value & mask), None
        )
