"""The last events: what is asked of them comes out the same wherever batches are cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdbext.events.columns import Columns
from gdbext.events.row import ROW, Kind
from gdbext.rules import history
from gdbext.rules.history import History


@given(
    st.lists(st.tuples(st.sampled_from([Kind.ENTRY, Kind.CR3, Kind.SWITCH_IN]), st.integers(0, 1)), min_size=1),
    st.integers(1, 9),
)
def test_the_last_rows_are_kept_and_the_last_switch_however_long_ago(rows: list[tuple[int, int]], cut: int) -> None:
    whole = np.zeros(len(rows), ROW)
    whole["kind"], whole["cpu"] = np.array(rows).T
    whole["seq"] = np.arange(1, len(rows) + 1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(history, "CAPACITY", 5)
        kept = History()
        for start in range(0, len(whole), cut):
            part = whole[start : start + cut]
            kept.begin(Columns(part))
            for before in part["seq"].tolist():
                past = whole[: before - 1]
                assert kept.before(before)["seq"].tolist() == past["seq"][-5:].tolist()
                for cpu in (0, 1):
                    switches = past["seq"][(past["cpu"] == cpu) & (past["kind"] != Kind.ENTRY)]
                    assert kept.last_switch(cpu, before) == (switches[-1] if len(switches) else 0)
