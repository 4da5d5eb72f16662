"""CW303: an entry on the stack of a thread that another CPU runs; and what is known of memory that all have."""

from __future__ import annotations

import pytest

from gdbext.events.row import Batch
from tests.rules.judged import judged
from tests.rules.rows import Flag, How, Kind, context, entry, exit_

ONE = 0xFFFF_8000_0010_0FD8
OTHER = 0xFFFF_8000_0020_0FD8
LEFT = ONE + 0x10_0000


def found(*rows: Batch) -> list[tuple[str, int]]:
    """The codes found and their events."""
    return [(finding.code, finding.event) for finding in judged(*rows)]


def comes(cpu: int, frame: int, thread: int, **changes: int) -> Batch:
    """The thread is interrupted in user code."""
    return entry(context(thread, cr3=0x5000), cpu=cpu, frame=frame, **changes)


def goes(cpu: int, frame: int, thread: int, **changes: int) -> Batch:
    """It goes on."""
    return exit_(context(thread, cr3=0x5000), cpu=cpu, frame=frame, **changes)


def switch(cpu: int) -> Batch:
    row = exit_(context(user=False), cpu=cpu, frame=0, rsp=LEFT)
    row["kind"], row["how"] = Kind.SWITCH_IN, How.UNKNOWN
    return row


def calls(cpu: int, thread: int) -> Batch:
    return entry(context(thread, cr3=0x5000), How.SYSCALL, cpu=cpu)


@pytest.mark.parametrize("shown", [comes(0, ONE, 1), goes(0, ONE, 1)], ids=["entered", "left"])
def test_a_stack_whose_thread_is_in_a_call_that_pushes_no_frame(shown: Batch) -> None:
    assert found(switch(0), shown, calls(0, 1), goes(1, OTHER, 2), comes(1, ONE, 2)) == [("CW303", 5)]


def test_a_thread_that_has_switched_away_may_go_on_elsewhere() -> None:
    assert found(switch(0), goes(0, ONE, 1), calls(0, 1), switch(0), goes(1, OTHER, 2), comes(1, ONE, 2)) == []


def test_a_thread_whose_frames_another_cpu_has_popped_is_there() -> None:
    assert found(switch(0), comes(0, ONE, 1), goes(1, ONE, 1), comes(1, ONE, 2)) == []


def test_where_no_switch_was_ever_seen_a_thread_may_have_moved() -> None:
    assert found(goes(0, ONE, 1), calls(0, 1), goes(1, OTHER, 2), comes(1, ONE, 2)) == []


def test_the_thread_itself_may_have_moved() -> None:
    assert found(switch(0), goes(0, ONE, 1), calls(0, 1), goes(1, OTHER, 2), comes(1, ONE, 1)) == []


def test_a_frame_on_an_ist_stack_is_not_on_the_thread_s() -> None:
    there = comes(0, OTHER, 1, flags=Flag.IST), goes(0, OTHER, 1)
    assert found(switch(0), goes(0, ONE, 1), *there, comes(1, ONE, 2)) == [("CW303", 5)]
    assert found(switch(0), *there, comes(1, OTHER, 2)) == []


def moved(frame: int, **changes: int) -> list[Batch]:
    """A kernel thread is interrupted on one CPU and goes on on another, under other page tables."""
    ctx = context(9, user=False)
    first = entry(ctx, cpu=0, frame=frame, cr3=0x1000)
    return [
        first,
        exit_(ctx, **({"cpu": 1, "frame": frame, "cr3": 0x2000, "flags": Flag.IDENTICAL, "match": 1} | changes)),
    ]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (moved(LEFT), [("CW303", 6)]),
        (moved(LEFT, cpu=0), []),  # each CPU may have its own memory there
        (moved(LEFT, cr3=0x1000), []),  # each process may
        (moved(LEFT + (1 << 39)), []),  # another entry of the top page table
        (moved(LEFT, flags=0, match=0), []),
    ],
    ids=["common", "one CPU", "one space", "elsewhere", "not seen whole"],
)
def test_two_processes_on_one_stack(before: list[Batch], expected: list[tuple[str, int]]) -> None:
    """One address is one place for both only where that was seen."""
    lands = entry(context(2, cr3=0x9000), cpu=1, frame=ONE)
    assert found(*before, switch(0), goes(0, ONE, 1), calls(0, 1), lands) == expected
    shared = [exit_(context(2, cr3=0x9000), cpu=1, frame=OTHER), comes(0, ONE, 1), lands]
    assert found(*before, *shared) == ([("CW303", 5)] if expected else [])
