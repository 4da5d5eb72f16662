"""Pending contexts found by their traits: the same ones that a look at all of them finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gdbext.events.columns import Columns
from gdbext.events.row import How
from gdbext.ledger.compare import is_call
from gdbext.ledger.pending import REACH_BYTES, Pending, traits
from tests.rules.rows import context, entry

CAPACITY = 4

_contexts = st.tuples(
    st.integers(1, 2),
    st.sampled_from([0, 0x400000]),
    st.sampled_from([0x7000, 0x8000]),
    st.booleans(),
    st.sampled_from([0x1000, 0x1008, 0x100C, 0x1038, 0x1040]),
)
_steps = st.lists(st.one_of(_contexts, st.integers(0, 7)), max_size=12)


@given(_steps)
@settings(deadline=None)
def test_what_is_found_by_trait_is_what_a_look_at_all_finds(steps: list[tuple[int, int, int, bool, int] | int]) -> None:
    pending = Pending(CAPACITY)
    for step in steps:
        if isinstance(step, int):
            pending.take(step)
            continue
        seed, rip, rsp, call, frame = step
        row = entry(context(seed, rip=rip, rsp=rsp), How.SYSCALL if call else How.INTERRUPT, frame=frame)
        found_by = traits(Columns(row))
        pending.add(row, found_by)
        everything = pending.all()
        assert len(everything) <= CAPACITY
        on_rsp = everything[everything["rsp"] == rsp]
        calls = everything[is_call(everything) & (everything["rip"] == rip)]
        thread = everything[everything["cr3"] == row["cr3"]]
        away = np.abs(everything["frame"].astype(np.int64) - frame)
        near = everything[(away > 0) & (away < REACH_BYTES) & (away % 8 == 0)]
        np.testing.assert_array_equal(pending.near(found_by)["seq"], near["seq"])
        np.testing.assert_array_equal(pending.on_rsp(rsp)["seq"], on_rsp["seq"])
        np.testing.assert_array_equal(pending.calls_at(rip)["seq"], calls["seq"])
        np.testing.assert_array_equal(pending.newest(found_by)["seq"], thread["seq"][-1:])
