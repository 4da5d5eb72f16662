"""Stores into hardware frames that are followed: who changed a word of a live one.

A frame is followed once one was found overwritten at its address: a thread's entries push theirs at one place, so
that the next time it happens the store is seen. The source is asked to watch it (``AreaWatcher.follow``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Final

import numpy as np

from gdbext.arch.frames import FRAME_FIELDS, word_size, words_pushed
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Flag, Kind
from gdbext.rules.draft import Judged
from gdbext.rules.laststores import Write

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
        self._now: Columns | None = None
        """The batch at hand."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Note the stores of a batch; nothing is judged."""
        self._now = batch
        self._note(self._words)
        return []

    def _note(self, words: Collection[int]) -> None:
        """Take the stores of the batch at hand into `words`."""
        if self._now is None or not words:
            return
        wanted = np.isin(self._now["addr"], np.array(list(words), np.uint64)) & (self._now["kind"] == Kind.STORE)
        for index in np.flatnonzero(wanted):
            row = self._now.row(int(index))
            write = Write(*(int(row[name][0]) for name in ("seq", "cpu", "pc", "value")))
            self._words[int(row["addr"][0])].append(write)

    def follow(self, entry: Batch) -> None:
        """Keep, from now on, the stores into the frame of the ENTRY row `entry` (a batch of one)."""
        start, end = frame_span(entry)
        if start and start not in self.spans and len(self.spans) < MAX_FRAMES:
            self.spans[start] = end
            words = set(range(start, end, word_size(int(entry["mode"][0])))) - self._words.keys()
            self._words |= {at: deque(maxlen=KEPT) for at in words}
            self._note(words)

    def change(self, entry: Batch, leaving: Batch, field: str) -> Write | None:
        """The first store that put what `leaving` resumes as `field` into the frame of `entry`; None if unseen."""
        word = word_size(int(entry["mode"][0]))
        at = int(entry["frame"][0]) + FRAME_FIELDS.index(field) * word
        first, last, value = int(entry["seq"][0]), int(leaving["seq"][0]), int(leaving[field][0])
        mask = (1 << 8 * word) - 1
        return next(
            (w for w in self._words.get(at, ()) if first < w.event < last and w.value & mask == value & mask), None
        )
