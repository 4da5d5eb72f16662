"""Stores into live hardware frames: who changed a word of one.

The probe tells those that change a word of a live frame from when an iret first pops a frame in place with other words
than the CPU pushed. Where a kernel copies its frames before it pops them, the source is asked to watch those places
once one was found overwritten (``AreaWatcher.follow``): a thread's entries push their frames at one place.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

from gdbext.arch.frames import FRAME_FIELDS, word_size, words_pushed
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Flag, Kind
from gdbext.ledger.compare import U64, Bools
from gdbext.rules.draft import Judged
from gdbext.rules.laststores import Write

MAX_FRAMES: Final = 64
MAX_WORDS: Final = 4096
KEPT: Final = 64
"""Stores kept for each word."""


def frame_span(entry: Batch) -> tuple[int, int]:
    """Where the frame of the ENTRY row `entry` (a batch of one) lies: first byte and the one behind it."""
    start, size = int(entry["frame"][0]), word_size(int(entry["mode"][0]))
    same_ring = bool(entry["flags"][0] & Flag.NO_STACK)
    return start, start + size * words_pushed(int(entry["mode"][0]), 0 if same_ring else 3, 0)


class FrameStores:
    """Keeps the last stores into each word of a frame."""

    def __init__(self) -> None:
        self._words: dict[int, deque[Write]] = {}
        self.spans: dict[int, int] = {}
        """First byte of each frame followed, and the one behind it."""
        self._now: Columns | None = None
        """The batch at hand."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Note the stores of a batch; nothing is judged."""
        self._now = batch
        stores = np.flatnonzero(batch["kind"] == Kind.STORE)
        if len(stores):
            told = (batch["frame"][stores] != 0) | self._inside(batch["addr"][stores])
            self._note(stores[told].tolist())
        return []

    @property
    def known(self) -> bool:
        """True once any store into a frame was seen, or may be from now on."""
        return bool(self._words or self.spans)

    def _inside(self, addresses: U64) -> Bools:
        """True for each address within a frame that is followed."""
        inside: Bools = np.zeros(len(addresses), bool)
        for start, end in self.spans.items():
            inside |= (addresses >= np.uint64(start)) & (addresses < np.uint64(end))
        return inside

    def _note(self, places: list[int]) -> None:
        """Take the stores of the batch at hand at `places`."""
        assert self._now is not None
        for at in places:
            row = self._now.row(at)
            address = int(row["addr"][0])
            if address not in self._words and len(self._words) >= MAX_WORDS:
                del self._words[next(iter(self._words))]
            self._words.setdefault(address, deque(maxlen=KEPT)).append(Write.of(row))

    def follow(self, start: int, end: int) -> None:
        """Have all stores from `start` to before `end` told from now on."""
        if start and start not in self.spans and len(self.spans) < MAX_FRAMES:
            self.spans[start] = end

    def last(self, address: int, before: int) -> Write | None:
        """The last store that put a word at `address` before event `before`; None if none was seen."""
        seen = [write for write in self._words.get(address, ()) if write.event < before]
        return max(seen, key=lambda write: write.event, default=None)

    def change(self, entry: Batch, leaving: Batch, field: str) -> Write | None:
        """The first store that put what `leaving` resumes as `field` into the frame of `entry`; None if unseen."""
        word = word_size(int(entry["mode"][0]))
        at = int(entry["frame"][0]) + FRAME_FIELDS.index(field) * word
        first, last, value = int(entry["seq"][0]), int(leaving["seq"][0]), int(leaving[field][0])
        mask = (1 << 8 * word) - 1
        return next(
            (w for w in self._words.get(at, ()) if first <= w.event < last and w.value & mask == value & mask), None
        )
