"""CW303: an entry from user mode on the stack that a suspended thread has left its frames on."""

from __future__ import annotations

import numpy as np

from gdbext.events.row import ROW, Batch
from tests.rules.judged import judged
from tests.rules.rows import How, Kind, context, entry, exit_

TOP = 0xFFFF_8000_0010_0000
STACK = 0x3000
FRAME = TOP - 40


def found(*rows: Batch) -> list[str]:
    """The codes found."""
    return [finding.code for finding in judged(*rows)]


def enters(thread: int, frame: int) -> Batch:
    return entry(context(thread), frame=frame)


def returns(thread: int, frame: int) -> Batch:
    return exit_(context(thread), frame=frame)


def switch(kind: int, rsp: int) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["mode"], row["rsp"] = kind, 64, rsp
    return row


def sleeps(thread: int, frame: int) -> tuple[Batch, ...]:
    """A thread that is known by its frames makes a system call and switches away in it."""
    call = entry(context(thread, rip=0x401000), How.SYSCALL, frame=0)
    return enters(thread, frame), returns(thread, frame), call, switch(Kind.SWITCH_OUT, frame - 0x40)


def wakes(frame: int) -> Batch:
    return switch(Kind.SWITCH_IN, frame - 0x40)


def test_landing_on_the_stack_of_a_thread_that_lives() -> None:
    assert found(*sleeps(1, FRAME), enters(2, FRAME), returns(2, FRAME), wakes(FRAME)) == ["CW303"]


def calls(thread: int, stack: int) -> tuple[Batch, ...]:
    """A thread goes on, returns to user code by sysret, and switches away in its next system call."""
    call = context(thread, rip=0x401000)
    back = exit_(call, How.SYSRET, frame=0)
    return switch(Kind.SWITCH_IN, stack), back, entry(call, How.SYSCALL, frame=0), switch(Kind.SWITCH_OUT, stack)


def test_landing_on_the_stack_of_a_thread_that_makes_nothing_but_system_calls() -> None:
    only_calls = calls(1, FRAME - 0x40)
    lands = enters(2, FRAME), returns(2, FRAME)
    assert found(*sleeps(1, FRAME), *only_calls, *lands, wakes(FRAME)) == ["CW303"]


def test_the_frames_of_a_cpu_lie_above_a_thread_s_stack() -> None:
    """Their handlers go on elsewhere: nobody is entered on the thread's stack, which happens to lie just below."""
    elsewhere = enters(3, FRAME), switch(Kind.SWITCH_OUT, FRAME - 16 * STACK), switch(Kind.SWITCH_IN, FRAME - 0x40)
    lands = enters(2, FRAME), returns(2, FRAME)
    assert found(*sleeps(1, FRAME), *elsewhere, *calls(1, FRAME - 0x40)[1:], *lands, wakes(FRAME)) == []


def test_a_stack_that_is_left_further_down_than_ever_may_be_another_one() -> None:
    below = FRAME - 0x40 - 8
    other = entry(context(3), How.SYSCALL, frame=0), switch(Kind.SWITCH_OUT, below)
    lands = enters(2, FRAME), returns(2, FRAME)
    assert found(*sleeps(1, FRAME), wakes(FRAME), returns(1, FRAME), *calls(3, below)[:2], *other, *lands) == []
    back = switch(Kind.SWITCH_IN, below)
    assert found(*sleeps(1, FRAME), *calls(3, below), *lands, back) == []


def test_a_stack_in_use_again_after_its_thread_has_ended() -> None:
    assert found(*sleeps(1, FRAME), enters(2, FRAME), returns(2, FRAME)) == []
    again = *sleeps(2, FRAME), wakes(FRAME)
    assert found(*sleeps(1, FRAME), *again) == []


def test_the_neighbour_s_stack_is_another_one() -> None:
    assert found(*sleeps(1, FRAME), enters(2, FRAME + STACK), returns(2, FRAME + STACK), wakes(FRAME)) == []


def test_the_thread_s_own_return_comes_after_it_goes_on() -> None:
    assert found(*sleeps(1, FRAME), wakes(FRAME), returns(1, FRAME), enters(1, FRAME)) == []


def test_a_kernel_thread_s_stack_has_no_frames_of_user_code() -> None:
    away = enters(1, FRAME), switch(Kind.SWITCH_OUT, FRAME - 0x40), switch(Kind.SWITCH_IN, FRAME - STACK - 0x40)
    kernel = switch(Kind.SWITCH_OUT, FRAME - STACK - 0x40), enters(2, FRAME - STACK), wakes(FRAME - STACK)
    assert found(*away, *kernel) == []


def idles(frame: int, *, below: int) -> tuple[Batch, ...]:
    """A kernel thread is resumed `below` bytes under `frame` and switches away."""
    rsp = frame - below
    return exit_(context(3, user=False, rsp=rsp)), switch(Kind.SWITCH_OUT, frame - 0x90)


def goes_on(frame: int) -> Batch:
    return switch(Kind.SWITCH_IN, frame - 0x90)


def test_landing_on_a_kernel_thread_s_stack() -> None:
    for below in (-0x20, 0x20, 0x50):
        assert found(*idles(FRAME, below=below), enters(2, FRAME), returns(2, FRAME), goes_on(FRAME)) == ["CW303"]


def test_a_kernel_thread_that_has_ended_is_not_overwritten() -> None:
    assert found(*idles(FRAME, below=0x20), enters(2, FRAME), returns(2, FRAME)) == []


def test_the_stack_above_a_kernel_thread_s_is_another_one() -> None:
    above = FRAME + STACK
    assert found(*idles(FRAME, below=0x20), enters(2, above), returns(2, above), goes_on(FRAME)) == []
    small = FRAME + 0x200  # a stack for entries of 512 bytes just above
    assert found(*idles(FRAME, below=-0x20), enters(2, small), returns(2, small), goes_on(FRAME)) == []


def test_kernel_code_resumed_on_another_stack_tells_nothing() -> None:
    elsewhere = exit_(context(3, user=False, rsp=FRAME + 0x2000)), switch(Kind.SWITCH_OUT, FRAME - 0x90)
    assert found(*elsewhere, enters(2, FRAME), returns(2, FRAME), goes_on(FRAME)) == []
