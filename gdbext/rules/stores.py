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
from gdbext.events.columns import Columns, Indices
from gdbext.events.row import ROW, Batch, Flag, Kind
from gdbext.ledger.compare import Bools
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
        self._past: dict[int, deque[Write]] = {}
        """By address, those of all batches before the one at hand."""
        self.spans: dict[int, int] = {}
        """First byte of each frame followed, and the one behind it."""
        self._now = Columns(np.zeros(0, ROW))
        """The batch at hand."""
        self._stores: Indices = np.zeros(0, np.intp)
        self._told: Bools = np.zeros(0, bool)
        """The positions of its stores, and which of them are into a frame."""
        self._written: dict[int, list[Write]] | None = None

    def feed(self, batch: Columns) -> list[Judged]:
        """Note the stores of a batch; nothing is judged."""
        for address, writes in self._by_address().items():
            if address not in self._past and len(self._past) >= MAX_WORDS:
                del self._past[next(iter(self._past))]
            self._past.setdefault(address, deque(maxlen=KEPT)).extend(writes)
        self._now, self._stores = batch, np.flatnonzero(batch["kind"] == Kind.STORE)
        self._told = batch["frame"][self._stores] != 0
        for start, end in self.spans.items() if len(self._stores) else ():
            self._told |= self._inside(start, end)
        self._written = None
        return []

    def known(self, event: int) -> bool:
        """True once, before `event`, any store into a frame was seen, or was asked for."""
        first = self._stores[self._told][:1]
        return bool(self._past or self.spans or (self._now["seq"][first] < event).any())

    def follow(self, start: int, end: int, after: int) -> None:
        """Have all stores from `start` to before `end` told behind event `after`."""
        if start and start not in self.spans and len(self.spans) < MAX_FRAMES:
            self.spans[start] = end
            self._told |= self._inside(start, end) & (self._now["seq"][self._stores] > after)
            self._written = None

    def last(self, address: int, before: int) -> Write | None:
        """The last store that put a word at `address` before event `before`; None if none was seen."""
        return max(self._before(address, before), key=lambda write: write.event, default=None)

    def change(self, entry: Batch, leaving: Batch, field: str) -> Write | None:
        """The first store that put what `leaving` resumes as `field` into the frame of `entry`; None if unseen."""
        word = word_size(int(entry["mode"][0]))
        at = int(entry["frame"][0]) + FRAME_FIELDS.index(field) * word
        first, last, value = int(entry["seq"][0]), int(leaving["seq"][0]), int(leaving[field][0])
        mask = (1 << 8 * word) - 1
        return next((w for w in self._before(at, last) if first <= w.event and w.value & mask == value & mask), None)

    def _before(self, address: int, event: int) -> list[Write]:
        """The last KEPT stores at `address` before `event`, wherever batches were cut."""
        writes = [*self._past.get(address, ()), *self._by_address().get(address, ())]
        return [write for write in writes if write.event < event][-KEPT:]

    def _inside(self, start: int, end: int) -> Bools:
        """True for each store of the batch at hand from `start` to before `end`."""
        addresses = self._now["addr"][self._stores]
        inside: Bools = (addresses >= np.uint64(start)) & (addresses < np.uint64(end))
        return inside

    def _by_address(self) -> dict[int, list[Write]]:
        """The stores into frames of the batch at hand, in order."""
        if self._written is None:
            self._written = {}
            told = self._now.pick(self._stores[self._told])
            for at, address in enumerate(told["addr"].tolist()):
                self._written.setdefault(address, []).append(Write.of(told[at : at + 1]))
        return self._written
