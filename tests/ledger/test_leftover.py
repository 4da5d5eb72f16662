"""The events that did not pair, and the contexts that wait around them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gdbext.events.columns import Columns
from gdbext.ledger.leftover import Spanning
from gdbext.ledger.pairing import Pairs
from gdbext.ledger.pending import threads
from tests.rules.rows import batch, context, entry, exit_

ROWS = 20

_pairs = st.permutations(range(ROWS)).flatmap(
    lambda order: st.integers(0, ROWS // 2).map(
        lambda count: [sorted(order[2 * at : 2 * at + 2]) for at in range(count)]
    )
)


@given(_pairs, st.lists(st.integers(1, 3), min_size=ROWS, max_size=ROWS))
def test_the_newest_of_a_thread_is_the_last_around_the_exit(pairs: list[list[int]], seeds: list[int]) -> None:
    pairs.sort()
    begins = {at for at, _ in pairs}
    rows = Columns(batch(*(entry(context(s)) if at in begins else exit_(context(s)) for at, s in enumerate(seeds))))
    entries, exits = np.array(pairs, np.intp).reshape(-1, 2).T
    rest = np.setdiff1d(np.arange(ROWS), np.concatenate((entries, exits)))
    spanning = Spanning(rows, Pairs(entries, exits, rest))
    thread = threads(rows)
    found = spanning.newest_of_threads(rest, thread[rest])
    for position, newest in zip(rest.tolist(), found.tolist(), strict=True):
        around = spanning.of_thread(position, int(thread[position]))
        assert newest == (around[-1] if len(around) else -1)
