"""A snapshot was loaded while the machine was watched: what was interrupted before it is another time's."""

from __future__ import annotations

import numpy as np

from gdbext.events.row import ROW, SLOT_NAMES, Batch
from gdbext.rules.engine import Engine
from tests.rules.rows import Kind, batch, context, entry, exit_, stamp


def told(kind: int, **columns: int) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["mode"] = kind, 64
    for name, value in columns.items():
        row[name] = value
    return row


def judged(*rows: Batch, single: bool) -> Engine:
    engine, every = Engine(), stamp(batch(*rows))
    for part in [every[at : at + 1] for at in range(len(every))] if single else [every]:
        engine.feed(part)
    return engine


def test_a_context_of_the_time_before_is_not_expected_back() -> None:
    before = context()
    changed = before | {"rbx": before["rbx"] + 1}
    restored = told(Kind.RESTORED)
    for single in (False, True):
        lost = judged(entry(before), exit_(changed), single=single)
        assert [finding.code for finding in lost.findings] == ["CW101"]
        engine = judged(entry(before), restored, exit_(changed), single=single)
        assert engine.findings == []
        assert not len(engine.pending())
        rows = entry(before), exit_(before), restored, entry(before), exit_(changed), entry(before), exit_(before)
        engine = judged(*rows, single=single)
        assert [finding.code for finding in engine.findings] == ["CW101"]
        assert (engine.counts.entries, engine.counts.exits, engine.counts.identical) == (3, 3, 2)


def test_areas_are_still_known() -> None:
    area = told(Kind.AREA, addr=0xFFFF_8000_0000_1000, value=256)
    slot = told(Kind.SLOT, addr=8, size=8, value=SLOT_NAMES.index("rbx"))
    for single in (False, True):
        engine = judged(area, slot, told(Kind.RESTORED), entry(context()), single=single)
        assert engine._areas.known(4)
        assert list(engine._areas._areas) == [0xFFFF_8000_0000_1000]
