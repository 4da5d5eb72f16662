"""The last store at an address: as if every store were kept."""

from __future__ import annotations

import numpy as np
import pytest

from gdbext.events.columns import Columns
from gdbext.events.row import ROW, Kind
from gdbext.rules.laststores import LastStores


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_it_answers_as_if_every_store_were_kept(size: int) -> None:
    rng = np.random.default_rng(size)
    rows = np.zeros(1000, ROW)
    rows["seq"] = np.arange(1, 1001)
    rows["kind"] = rng.choice([Kind.STORE, Kind.ENTRY], 1000)
    rows["addr"], rows["value"], rows["pc"] = rng.integers(0, 12, 1000), rng.integers(0, 99, 1000), 7
    stores = LastStores()
    for start in range(0, 1000, size):
        part = rows[start : start + size]
        stores.begin(Columns(part))
        chosen = np.flatnonzero(part["kind"] == Kind.STORE)
        half = len(chosen) // 2
        stores.note(chosen[:half])
        stores.last(3, start)  # asked for between two notes
        stores.note(chosen[half:])
        for before in rng.integers(start + 1, start + len(part) + 2, 5).tolist():
            for address in range(12):
                known = rows[(rows["kind"] == Kind.STORE) & (rows["addr"] == address) & (rows["seq"] < before)][-1:]
                found = stores.last(address, before)
                assert (found.event if found else 0) == (int(known["seq"][0]) if len(known) else 0)
                assert found is None or found.value == known["value"][0]
