"""The events of a batch that did not pair and are looked at one by one, each with all that it is looked up by.

All of it is made by column: a look at a single row through NumPy costs as much as ten look-ups in a dictionary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from gdbext.arch.frames import CS_WORD, RIP_WORD, RSP_WORD
from gdbext.events.columns import Columns, Indices, grouped
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.ledger.compare import U64, Bools, is_user, mixed, page_tables
from gdbext.ledger.pairing import Pairs
from gdbext.ledger.pending import REACH_BYTES, Traits, places, threads, traits

MOST_BELOW: Final = 3
"""Words below a frame at which RSP is looked for; the eight words seen then hold the frame."""


class Left(NamedTuple):
    """One event. position: in its batch.  row: a batch of one.  user: its context is user code's.  as_user: its key if
    it were user code's; an ia32 iret to kernel code pops no ESP, which lies in the frame all the same.  below: for a
    64-bit iret, the keys that the context would have one, two, three words further up the stack.  newest: the last
    context of its thread that waits and is resumed later in the batch (a batch of one, or empty).  beside, on_frame:
    such a context may have its frame beside this one's, or, of kernel code, at it and for the same RSP.
    """

    position: int
    row: Batch
    kind: int
    how: int
    flags: int
    rip: int
    user: bool
    traits: Traits
    as_user: int
    below: tuple[int, ...]
    newest: Batch
    beside: bool
    on_frame: bool


class Spanning:
    """The identical pairs of a batch that have an exit left over between entry and exit: what they interrupted waits
    when that exit comes."""

    def __init__(self, batch: Columns, pairs: Pairs) -> None:
        left = np.zeros(len(batch), np.int32)
        left[pairs.rest[batch["kind"][pairs.rest] == Kind.EXIT]] = 1
        exits = np.cumsum(left, dtype=np.int32)
        some = exits[pairs.entries] != exits[pairs.exits]
        self._entries, self._exits = pairs.entries[some], pairs.exits[some]
        self._rows = batch.take(self._entries)

    @property
    def rows(self) -> Columns:
        """What was interrupted."""
        return self._rows

    def around(self, position: int) -> Indices:
        """The positions of those entries that lie `position` and whose exits come after it, in order."""
        before = int(np.searchsorted(self._entries, position))
        found: Indices = self._entries[:before][self._exits[:before] > position]
        return found

    def of_thread(self, position: int, thread: int) -> Indices:
        """Those of them that were interrupted in the thread of this hash."""
        before = int(np.searchsorted(self._entries, position))
        own = (self._exits[:before] > position) & (threads(self._rows)[:before] == np.uint64(thread))
        found: Indices = self._entries[:before][own]
        return found

    def newest_of_threads(self, positions: Indices, thread: U64) -> Indices:
        """For each of `positions` the last of those around it in the thread of that hash, -1: there is none."""
        found = np.full(len(positions), -1)
        if not len(self._entries):
            return found
        groups = grouped(threads(self._rows))
        order = np.argsort(groups.which, kind="stable")
        above = int(max(self._exits.max(), positions.max())) + 1
        base = groups.which[order] * above  # so that positions of one thread do not compare with those of another
        entries, exits = self._entries[order], self._exits[order]
        latest = np.maximum.accumulate(base + exits) - base
        which = np.searchsorted(groups.distinct, thread)
        known = np.flatnonzero(groups.distinct[np.minimum(which, len(groups.distinct) - 1)] == thread)
        at = positions[known]
        last = np.searchsorted(base + entries, which[known] * above + at) - 1
        some = (last >= 0) & (groups.which[order[last]] == which[known]) & (latest[last] > at)
        for to, position, back in zip(known[some].tolist(), at[some].tolist(), last[some].tolist(), strict=True):
            while exits[back] <= position:  # one around it was interrupted before
                back -= 1
            found[to] = entries[back]
        return found

    def may_lie_beside(self, rows: Columns) -> Bools:
        """False where no frame lies within REACH_BYTES of that of `rows`, but not at it."""
        if not len(self._entries):
            return np.zeros(len(rows), bool)
        return is_beside(rows["frame"], np.unique(self._rows["frame"]))

    def may_lie_on(self, rows: Columns) -> Bools:
        """False where no kernel code with the RSP of `rows` has its frame where theirs is."""
        if not len(self._entries):
            return np.zeros(len(rows), bool)
        kernel = self._rows.take(np.flatnonzero(~is_user(self._rows)))
        return np.isin(places(rows), places(kernel))


def is_beside(at: U64, frames: U64) -> Bools:
    """True for addresses `at` within REACH_BYTES of one of the `frames` (ascending), but not at it."""
    reach = np.uint64(REACH_BYTES - 1)
    first, last = np.maximum(at, reach) - reach, np.minimum(at, ~reach) + reach
    near = np.searchsorted(frames, last, "right") - np.searchsorted(frames, first)
    same = np.searchsorted(frames, at, "right") - np.searchsorted(frames, at)
    beside: Bools = near != same
    return beside


def leftover(batch: Columns, rest: Indices, spanning: Spanning) -> Iterator[Left]:
    """The entries and exits at `rest` of a batch, which did not pair, in order."""
    if not len(rest):
        return
    rows, whole = batch.take(rest), batch.pick(rest)
    found_by = traits(rows)
    popped, tables = rows["stack"], page_tables(rows)
    newest = spanning.newest_of_threads(rest, threads(rows))
    some = newest >= 0
    waits, upto = batch.pick(newest[some]), np.cumsum(some)
    rsp = np.where((rows["flags"] & Flag.NO_STACK) != 0, popped[:, RSP_WORD], rows["rsp"])
    yield from map(
        Left,
        rest.tolist(),
        (whole[at : at + 1] for at in range(len(whole))),
        *(rows[name].tolist() for name in ("kind", "how", "flags", "rip")),
        is_user(rows).tolist(),
        (found_by.of(slice(at, at + 1)) for at in range(len(whole))),
        mixed(rows["rip"], rsp, tables).tolist(),
        _below(rows),
        (waits[end - one : end] for end, one in zip(upto.tolist(), some.tolist(), strict=True)),
        spanning.may_lie_beside(rows).tolist(),
        spanning.may_lie_on(rows).tolist(),
    )


def keys_below(rows: Columns) -> U64:
    """The keys of the contexts whose frames would be one, two, three words further up the stack, as (n, 3)."""
    popped, tables = rows["stack"], page_tables(rows)
    columns = []
    for words in range(1, MOST_BELOW + 1):
        user = (popped[:, words + CS_WORD] & 3) == 3
        space = np.where(user, tables, np.uint64(0))
        columns.append(mixed(popped[:, words + RIP_WORD], popped[:, words + RSP_WORD], space))
    return np.stack(columns, axis=1)


def _below(rows: Columns) -> list[tuple[int, ...]]:
    framed = ((rows["how"] == How.IRET) & (rows["mode"] == 64)).tolist()
    return [tuple(keys) if known else () for keys, known in zip(keys_below(rows).tolist(), framed, strict=True)]
