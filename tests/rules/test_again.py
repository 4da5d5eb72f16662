"""CW404 of a system call that returns for the third time, CW303 of a landing that explains what came back wrong."""

from __future__ import annotations

from typing import Any

import pytest

from gdbext.arch.vectors import BP
from gdbext.events.row import Batch
from tests.rules.judged import judged
from tests.rules.rows import How, context, entry, exit_

CALL = context(1, rip=0x401000, rcx=0x401000, r11=0x246)
FRAME = 0xFFFF_8000_0010_0000
STACK = 0x4000


def found(*rows: Batch, start: int = 0) -> list[tuple[str, str | None, int]]:
    """What is found: code, field, event."""
    return [(finding.code, finding.field, finding.event - start) for finding in judged(*rows)]


def returns(result: int = 0, **changes: Any) -> Batch:
    return exit_(CALL | {"rax": result} | changes, How.SYSRET)


def interrupted(rip: int, **changes: Any) -> Batch:
    return entry(context(1, rip=rip, rax=rip, rbx=rip, rdx=rip, rsi=rip), **changes)


def sent_back(*, times: int, result: int = 0, **changes: Any) -> tuple[Batch, ...]:
    """A call returns, and each time its thread is interrupted later on it is sent back there."""
    call, first = entry(CALL, How.SYSCALL), exit_(CALL, How.SYSRET, match=1)
    again = [row for n in range(times) for row in (interrupted(0x402000 + n, **changes), returns(result))]
    return call, first, *again


def test_a_call_that_returns_for_the_third_time() -> None:
    assert found(*sent_back(times=2, result=7)) == [("CW404", "rip", 6)]


def test_a_call_that_returns_twice_made_a_child() -> None:
    assert found(*sent_back(times=1)) == []


def test_a_tracer_may_put_back_what_it_found() -> None:
    assert found(*sent_back(times=3, vector=BP, how=How.EXCEPTION)) == []


def test_a_call_that_is_made_again_returns_again() -> None:
    again = [row for _ in range(3) for row in sent_back(times=1)]
    assert found(*again) == []


def test_a_handler_begins_again_and_again() -> None:
    handler = context(1, rip=0x403000)
    rows = [row for n in range(4) for row in (interrupted(0x402000 + n), exit_(handler))]
    assert found(*rows) == []


def lives(thread: int, *, times: int = 6, **changes: Any) -> list[Batch]:
    """A thread is entered at the same place of its own stack again and again."""
    ctx, frame = context(thread, **changes), FRAME + thread * STACK
    return [row for _ in range(times) for row in (entry(ctx, frame=frame), exit_(ctx, frame=frame))]


def settled(**changes: Any) -> list[Batch]:
    return [*lives(1, **changes), *lives(2, **changes)]


@pytest.mark.parametrize("one_space", [False, True])
def test_a_thread_that_landed_on_another_s_stack_and_comes_back_wrong(one_space: bool) -> None:
    changes: dict[str, Any] = {"cr3": 0x5000} if one_space else {}
    rows, ctx = settled(**changes), context(1, **changes)
    lands = entry(ctx, frame=FRAME + 2 * STACK), exit_(ctx | {"r10": 7}, frame=FRAME + 2 * STACK)
    assert found(*rows, *lands, start=len(rows)) == [("CW303", "frame", 1), ("CW101", "r10", 2)]


def test_a_thread_whose_frame_another_one_landed_on() -> None:
    rows, owner, frame = settled(), context(2), FRAME + 2 * STACK
    lands = entry(context(1), frame=frame), exit_(context(1), frame=frame)
    all_of_it = entry(owner, frame=frame), *lands, exit_(owner | {"r10": 7}, frame=frame)
    assert found(*rows, *all_of_it, start=len(rows)) == [("CW303", "frame", 2), ("CW101", "r10", 4)]


def test_a_thread_that_lands_elsewhere_and_comes_back_whole() -> None:
    rows, ctx = settled(), context(1)
    moved = [row for _ in range(3) for row in (entry(ctx, frame=FRAME + 2 * STACK), exit_(ctx))]
    assert found(*rows, *moved) == []


def test_a_loss_on_the_thread_s_own_stack_is_told_alone() -> None:
    rows, ctx = settled(), context(1)
    wrong = entry(ctx, frame=FRAME + STACK), exit_(ctx | {"r10": 7}, frame=FRAME + STACK)
    assert [code for code, _, _ in found(*rows, *wrong)] == ["CW101"]
