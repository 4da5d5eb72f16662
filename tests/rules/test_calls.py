"""How system calls come back: behind the `int` that stands behind a fast one, restarted, and on their stack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gdbext.events.row import Batch
from gdbext.rules.engine import Engine
from tests.rules.rows import Flag, How, Kind, batch, context, entry, exit_, stamp
from tests.rules.test_resume import codes, switch

USER32 = context(3, cs=0x23, rip=0xF7F36557, rsp=0xFFFE0290, flags=Flag.LINEAR32) | dict.fromkeys(
    ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"), 0
)
BEHIND = USER32 | {"rip": USER32["rip"] + 2}
"""Behind the `int n` that stands behind the call."""


def fast_call(how: int = How.SYSENTER) -> Batch:
    call = entry(USER32, How.SYSCALL, flags=Flag.LINEAR32 | Flag.FLAGS_PARTIAL * (how == How.SYSENTER))
    call["how"] = how
    return call


@pytest.mark.parametrize("how", [How.SYSENTER, How.SYSCALL])
@pytest.mark.parametrize("leaving", [How.IRET, How.SYSEXIT])
def test_a_fast_call_returns_behind_the_int(how: int, leaving: int) -> None:
    popped = {"rax": 0, "rcx": 1, "rdx": 2, "rbp": 3}
    assert codes(fast_call(how), exit_(BEHIND | popped, leaving)) == []
    assert codes(fast_call(how), exit_(BEHIND | popped | {"rsi": 4}, leaving)) == [("CW106", "rsi")]


def test_a_sysenter_in_a_page_that_is_mapped_elsewhere_too() -> None:
    """What is known of where it stood is the place within its page."""
    call = fast_call()
    call["rip"] ^= 0x31000
    assert codes(call, exit_(BEHIND | {"rcx": 1}, How.SYSEXIT)) == []
    call = fast_call()
    call["rip"] ^= 0x31000
    assert codes(call, exit_(BEHIND | {"rbx": 1}, How.SYSEXIT)) == [("CW106", "rbx")]


def test_a_restarted_fast_call_has_its_arguments_back() -> None:
    restarted = exit_(USER32 | {"rbp": 5})
    assert codes(fast_call(), exit_(BEHIND), fast_call(), restarted) == []
    assert codes(fast_call(), exit_(BEHIND), fast_call(), exit_(USER32 | {"rdi": 5})) == [("CW106", "rdi")]


def test_arithmetic_flags_that_were_read_live_are_not_judged() -> None:
    assert codes(fast_call(), exit_(BEHIND | {"rflags": 0x283})) == []
    assert codes(fast_call(), exit_(BEHIND | {"rflags": 0x40246})) == [("CW102", "rflags")]


def test_a_restarted_call_is_over() -> None:
    """What is made again afterwards is another call, with other registers."""
    again = USER32 | {"rsi": 77}
    restarted = exit_(USER32, rip=USER32["rip"] - 2)
    assert codes(entry(USER32, How.SOFT), restarted, entry(again, How.SOFT), exit_(again | {"rdi": 5})) == [
        ("CW106", "rdi")
    ]


def test_a_restarted_call_that_was_never_resumed_is_over_with_the_next() -> None:
    """Its process was killed, and another has its page tables; the next call was resumed by a vfork's child."""
    left = entry(BEHIND | {"rdi": 7}, How.SOFT)
    assert codes(left, fast_call(), exit_(BEHIND), exit_(BEHIND | {"rcx": 5, "rdx": 6}, How.SYSEXIT)) == []


@pytest.mark.parametrize("leaving", [How.SYSRET, How.IRET])
def test_a_call_returns_to_its_stack_unless_another_thread_ran(leaving: int) -> None:
    """A return behind a call on another stack: the first run of a thread after a switch, else RSP was lost."""
    ctx = context()
    call, lost = entry(ctx, How.SYSCALL, rax=1), exit_(ctx | {"rsp": 0x1000, "rax": 0}, leaving)
    assert codes(stamp(batch(switch(), call, lost))) == [("CW106", "rsp")]
    assert codes(stamp(batch(switch(), call, switch(Kind.SWITCH_OUT), lost))) == []
    assert codes(stamp(batch(switch(cpu=1), call, lost))) == []  # whether switches are seen is not known
    moved = exit_(ctx | {"rsp": 0x1000, "rip": ctx["rip"] + 8}, leaving)
    assert codes(stamp(batch(switch(), call, moved))) == []


AWAY = 1000
"""The number of the event in which the caller goes away."""


@pytest.mark.parametrize(
    ("between", "lost"),
    [
        ([], False),
        ([switch(match=AWAY)], True),
        ([switch(match=AWAY - 7)], False),  # another one came back
        ([switch(match=AWAY), switch(Kind.SWITCH_OUT)], False),
        ([switch(match=AWAY), switch(Kind.SWITCH_OUT), switch(match=AWAY + 2)], True),
        ([switch(match=AWAY, cpu=1)], False),  # the caller runs elsewhere
        ([switch(match=AWAY), switch(Kind.CR3, value=0x900000)], False),  # perhaps a switch that was not seen
        ([switch(match=AWAY), switch(Kind.CR3, value=context()["cr3"] | 0x1005)], True),  # its tables for user code
    ],
)
def test_a_caller_that_comes_back_returns_to_its_stack(between: list[Batch], lost: bool) -> None:
    ctx = context()
    call, lost_rsp = entry(ctx, How.SYSCALL), exit_(ctx | {"rsp": 0x1000}, How.SYSRET)
    rows = batch(switch(), call, switch(Kind.SWITCH_OUT), *between, lost_rsp)
    rows["seq"] = np.arange(AWAY - 2, AWAY - 2 + len(rows))
    engine = Engine()
    engine.feed(rows)
    assert [(finding.code, finding.field) for finding in engine.findings] == ([("CW106", "rsp")] if lost else [])


@pytest.mark.parametrize("over", [True, False], ids=["over", "waiting"])
def test_a_caller_that_returns_on_the_stack_of_another_call(over: bool) -> None:
    """Per-CPU scratch: the other thread's call that left its RSP there may be over long since, its thread elsewhere."""
    ctx, other = context(), context(2)
    theirs = [entry(other, How.SYSCALL), exit_(other, How.SYSRET)][: 1 + over]
    rows = batch(switch(), entry(ctx, How.SYSCALL), switch(Kind.SWITCH_OUT), *theirs, switch())
    rows = stamp(batch(rows, exit_(ctx | {"rsp": other["rsp"]}, How.SYSRET)))
    rows["match"][len(rows) - 2] = 3
    assert codes(rows) == [("CW107", "rsp")]


def test_a_caller_is_told_from_one_of_its_fs_base_by_gs() -> None:
    """32-bit code has its process's data behind FS, its thread's behind GS; another's call is newer."""
    ctx = context(gs_base=0x610300)
    other = context(2, gs_base=0x610700, fs_base=ctx["fs_base"])
    waits = entry(other, How.SYSCALL)
    rows = batch(switch(), entry(ctx, How.SYSCALL), switch(Kind.SWITCH_OUT), waits, switch(Kind.SWITCH_OUT), switch())
    rows = stamp(batch(rows, exit_(ctx | {"rsp": other["rsp"]}, How.SYSRET)))
    rows["match"][len(rows) - 2] = 3
    assert codes(rows) == [("CW107", "rsp")]


@pytest.mark.parametrize("leaving", [How.SYSEXIT, How.IRET])
def test_a_sysexit_returns_to_its_stack_behind_the_int(leaving: int) -> None:
    narrow: dict[str, Any] = {"mode": 32, "flags": Flag.LINEAR32}
    ctx = context(rsp=0x7FE0, rbp=0x7FE0) | {f"r{n}": 0 for n in range(8, 16)}
    back = ctx | {"rip": ctx["rip"] + 2, "rax": 0, "rcx": 0x44, "rdx": ctx["rip"] + 2, "rsp": 0x44}
    call = entry(ctx, How.SYSENTER, rax=20, **narrow)
    assert codes(stamp(batch(switch(), call, exit_(back, leaving, **narrow)))) == [("CW106", "rsp")]
