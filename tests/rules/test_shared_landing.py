"""CW303: two CPUs that are entered from user mode on one stack."""

from __future__ import annotations

import pytest

from gdbext.events.row import Batch
from gdbext.rules.engine import Engine
from tests.rules.judged import judged
from tests.rules.rows import Flag, How, batch, context, entry, exit_, stamp

ONE = 0xFFFF_8000_0010_0FD8
OTHER = 0xFFFF_8000_0020_0FD8


def found(*rows: Batch) -> list[tuple[str, int]]:
    """The codes found and their events."""
    return [(finding.code, finding.event) for finding in judged(*rows)]


def comes(cpu: int, frame: int, thread: int = 0, **changes: int) -> Batch:
    """The thread (by default the CPU's) is interrupted in user code."""
    return entry(context(thread or cpu + 1, cr3=0x5000), cpu=cpu, frame=frame, **changes)


def goes(cpu: int, frame: int = 0, thread: int = 0, **changes: int) -> Batch:
    """It goes on."""
    return exit_(context(thread or cpu + 1, cr3=0x5000), cpu=cpu, frame=frame, **changes)


def test_two_cpus_with_one_stack() -> None:
    assert found(comes(1, ONE), goes(1, ONE), comes(0, ONE), comes(1, ONE)) == [("CW303", 4)]


def test_it_does_not_matter_whether_the_first_has_left() -> None:
    assert found(comes(1, ONE), goes(1, ONE), comes(0, ONE), goes(0, ONE), comes(1, ONE), goes(1, ONE)) == [
        ("CW303", 5)
    ]


def test_it_is_told_once() -> None:
    both = comes(0, ONE), goes(0, ONE), comes(1, ONE), goes(1, ONE)
    assert found(goes(0, ONE), goes(1, ONE), *both * 3)[-1:] == [("CW303", 5)]


def test_who_is_named() -> None:
    engine = Engine()
    (finding,) = engine.feed(stamp(batch(comes(1, ONE), goes(1, ONE), comes(0, ONE), comes(1, ONE, flags=Flag.IST))))
    assert "CPU 1 was entered" in finding.cause
    assert "CPU 0 was entered at event 3" in finding.cause
    assert "IST" in finding.look_at


def test_stacks_of_their_own() -> None:
    assert found(comes(1, ONE), goes(1, ONE), comes(0, OTHER), comes(1, ONE)) == []


def test_a_thread_that_moves_takes_its_stack_along() -> None:
    assert found(comes(1, OTHER), comes(0, ONE, thread=3), goes(1, ONE, thread=3), comes(1, ONE, thread=3)) == []


def test_a_fast_system_call_pushes_no_frame() -> None:
    ctx = context(1, cr3=0x5000)
    calls = [
        event
        for cpu in (0, 1, 0, 1)
        for event in (
            entry(ctx | {"rsp": cpu + 1}, How.SYSCALL, cpu=cpu),
            exit_(ctx | {"rsp": cpu + 1}, How.SYSRET, cpu=cpu),
        )
    ]
    assert found(*calls) == []


@pytest.mark.parametrize("between", [entry(context(user=False), cpu=1), comes(1, OTHER)], ids=["kernel", "user"])
def test_what_was_not_in_user_code_all_the_while(between: Batch) -> None:
    """Its RSP0 may have been another one when the first CPU was entered."""
    assert ("CW303", 5) not in found(comes(1, OTHER), goes(1, OTHER), between, comes(0, ONE), comes(1, ONE))


def test_rows_that_were_overwritten() -> None:
    """What a flight recorder has lost may have been the return."""
    assert found(comes(1, ONE), goes(1, ONE), comes(0, ONE), comes(1, ONE, flags=Flag.STALE)) == []


def test_one_address_in_two_address_spaces() -> None:
    """A kernel may have each process's kernel stack at one address."""
    other = context(7, cr3=0x9000)
    rows = comes(1, ONE), goes(1, ONE), entry(other, cpu=0, frame=ONE), comes(1, ONE)
    assert found(*rows) == []
