"""Kernels without user mode, whose threads are all kernel code: the FS base is the thread's own there (CW104).

Elsewhere it is the user context's while kernel code runs, and is judged at the return to user mode. Here it must be in
place whenever a thread goes on: what FS base its code was interrupted with it must be resumed with. As soon as user
code is seen this ends for good. A base that belongs to the CPU differs where a context goes on on another one.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.events.columns import Columns, grouped
from gdbext.events.row import Batch, Flag, Kind, concat, single
from gdbext.ledger.compare import Bools, gprs, is_user, keys
from gdbext.ledger.pairing import adjacent
from gdbext.rules import verdicts
from gdbext.rules.draft import Judged

CAPACITY: Final = 4096
"""Contexts remembered; beyond it the oldest is forgotten."""


ALONE: Final = 64
"""Entries and exits in a row that are kernel code's before there is said to be no other."""


class KernelOnly:
    """Tells for how long no user code was seen."""

    def __init__(self) -> None:
        self.over = False
        self.rows: Bools = np.empty(0, bool)
        """Of the batch fed last: the rows behind the first ALONE and in front of the first entry from user code, or
        return to it."""
        self._seen = 0
        """Entries and exits."""

    def feed(self, batch: Columns) -> None:
        """Look at a batch, in order of ``seq``."""
        before = self.rows = np.full(len(batch), not self.over)
        if not self.over:
            contexts = np.flatnonzero((batch["kind"] == Kind.ENTRY) | (batch["kind"] == Kind.EXIT))
            crossings = contexts[is_user(batch)[contexts]]
            missing = max(ALONE - self._seen, 0)
            before[: contexts[missing] if len(contexts) > missing else len(batch)] = False
            before[crossings[0] if len(crossings) else len(batch) :] = False
            self.over = bool(len(crossings))
            self._seen += len(contexts)


class KernelOnlyJudge:
    """Holds each interrupted context against the FS base it is resumed with on the same CPU.

    alone: has been fed the batch before.
    """

    def __init__(self, alone: KernelOnly) -> None:
        self._alone = alone
        self._waiting: dict[int, Batch] = {}
        """By RIP, RSP and page tables."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge a batch in order of ``seq``; it costs nothing once user code was seen."""
        alone = self._alone.rows
        if not alone.any():
            return []
        kind, flags = batch["kind"], batch["flags"]
        chosen = ((kind == Kind.ENTRY) | (kind == Kind.EXIT)) & (batch["mode"] == 64) & alone
        rows = batch.take(np.flatnonzero(chosen & ((flags & (Flag.UNREADABLE | Flag.SELF | Flag.NO_BASES)) == 0)))
        judged: list[Judged] = []
        if len(rows):
            is_exit, key = rows["kind"] == Kind.EXIT, keys(rows)
            entries, exits = adjacent(key, is_exit)
            differ = np.flatnonzero(rows["fs_base"][entries] != rows["fs_base"][exits])
            for entry, at in zip(entries[differ].tolist(), exits[differ].tolist(), strict=True):
                judged += self._judge(rows.row(entry), rows.row(at), rows)
            groups = grouped(key)
            for first, last in zip(groups.first.tolist(), groups.last.tolist(), strict=True):
                waits = self._waiting.pop(int(key[first]), None)
                if is_exit[first] and waits is not None:
                    judged += self._judge(waits, rows.row(first), rows)
                if not is_exit[last]:
                    self._waiting[int(key[last])] = single(rows.row(last), 0)
        if self._alone.over:
            self._waiting.clear()
        for context in list(self._waiting)[: max(len(self._waiting) - CAPACITY, 0)]:
            del self._waiting[context]
        return judged

    def _judge(self, entry: Batch, row: Batch, rows: Columns) -> list[Judged]:
        """The verdict on the exit `row`; whose base it brings is looked for among what waited and `rows`."""
        if entry["fs_base"][0] == row["fs_base"][0] or entry["cpu"][0] != row["cpu"][0]:
            return []
        if (gprs(entry) != gprs(row)).any():
            return []
        theirs = (rows["kind"] == Kind.ENTRY) & (rows["fs_base"] == row["fs_base"][0]) & (rows["seq"] < row["seq"][0])
        others = concat([entry[:0], *self._waiting.values(), rows.pick(np.flatnonzero(theirs)[-1:])])
        return [(verdicts.fs_base(entry, row, others, "exact"), row, entry)]
