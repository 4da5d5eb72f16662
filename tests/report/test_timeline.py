"""The timeline: handlers nest, the GS base in use is followed, windows are where kernel code runs on the user's."""

from __future__ import annotations

import numpy as np

from gdbext.events.row import Batch, Kind
from gdbext.report.timeline import KERNEL, RESUMED, UNKNOWN, USER, Slice, Stretch, Timeline
from tests.recording.sessions import busy, cuts
from tests.rules.rows import batch, context, entry, exit_, stamp


def swap() -> Batch:
    row = exit_(context())
    row["kind"], row["how"] = Kind.SWAPGS, 0
    return row


def area() -> Batch:
    row = swap()
    row["kind"], row["cs"] = Kind.AREA, 0
    return row


def run(*rows: Batch, size: int = 1000) -> tuple[list[Slice], list[Stretch], list[Stretch]]:
    whole = stamp(batch(*rows))
    whole["time"] = whole["seq"] * 10
    timeline = Timeline()
    fed = [timeline.feed(part) for part in cuts(whole, size)] + [timeline.finish()]
    slices = [item for part in fed for item in part[0]]
    gs = [item for part in fed for item in part[1]]
    windows = [item for part in fed for item in part[2]]
    return sorted(slices, key=lambda s: (s.start, -s.end)), sorted(gs), sorted(windows)


def test_a_window_is_between_entry_and_swapgs_and_before_the_exit() -> None:
    user = context()
    _, gs, windows = run(entry(user), swap(), swap(), exit_(user), entry(user), swap())
    assert [(w.start, w.end) for w in windows] == [(10, 20), (30, 40), (50, 60)]
    assert [(g.start, g.end, g.state) for g in gs if g.end > g.start] == [
        (10, 20, USER), (20, 30, KERNEL), (30, 60, USER),
    ]  # fmt: skip


def test_what_happens_on_no_cpu_makes_no_window() -> None:
    user = context()
    _, _, windows = run(entry(user), swap(), swap(), exit_(user), area(), area(), entry(user), swap())
    assert [(w.start, w.end) for w in windows] == [(10, 20), (30, 40), (70, 80)]


def test_handlers_nest() -> None:
    user, kernel = context(), context(7, user=False)
    slices, _, _ = run(entry(user), entry(kernel), exit_(kernel), exit_(user))
    assert [(s.depth, s.start, s.end, s.event, s.until) for s in slices] == [(0, 10, 40, 1, 4), (1, 20, 30, 2, 3)]


def test_a_switch_leaves_what_was_open_and_resumes_kernel_code() -> None:
    user, kernel = context(), context(7, user=False)
    slices, _, _ = run(entry(user), exit_(kernel), entry(kernel), exit_(kernel))
    assert [(s.vector, s.start, s.end, s.until) for s in slices] == [
        (32, 10, 20, 0),
        (RESUMED, 20, 40, 0),
        (32, 30, 40, 4),
    ]


def test_nothing_depends_on_where_batches_are_cut() -> None:
    rows = busy(200)
    whole = [run(rows, size=size) for size in (len(rows), 64, 7)]
    assert whole[0][0] == whole[1][0] == whole[2][0]
    assert whole[0][2] == whole[1][2] == whole[2][2]
    states = [[g for g in part[1] if g.end > g.start and g.state != UNKNOWN] for part in whole]
    assert states[0] == states[1] == states[2]
    assert np.all([slice_.end >= slice_.start for slice_ in whole[0][0]])
