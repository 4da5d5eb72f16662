"""Restartable sequences: user code that a switch sends to its abort, and code that merely lost its RIP."""

from __future__ import annotations

import pytest

from gdbext.rules import redirects
from gdbext.rules.policy import Calls, Policy
from tests.rules.rows import Flag, How, Kind, batch, context, entry, exit_, stamp
from tests.rules.test_resume import codes, switch


def test_a_restartable_sequence_is_aborted_only_where_another_thread_ran() -> None:
    """Interrupted user code with its RSP at another RIP: an abort, if there was a switch; without one, RIP was lost."""
    policy, ctx = Policy(user_redirects=True), context()
    aborted = exit_(ctx | {"rip": ctx["rip"] + 0x40})
    for between in ((), (switch(cpu=1),)):
        assert codes(stamp(batch(entry(ctx), *between, aborted)), policy=policy) == [("CW101", "rip")]
    for kind in (Kind.SWITCH_IN, Kind.CR3):
        assert codes(stamp(batch(entry(ctx), switch(kind), aborted)), policy=policy) == []


def test_a_restartable_sequence_goes_on_behind_its_signature() -> None:
    """Once a call has named the signature, RIP alone cannot move to a place that has something else in front of it."""
    policy, ctx, signature = Policy(user_redirects=True, names_aborts=Calls((334,), (386,))), context(), 0x53053053
    native = entry(context(2), How.SYSCALL, rax=334, r10=signature)
    ia32 = entry(context(2), How.SOFT, rax=386, rsi=signature, flags=Flag.LINEAR32)
    other = entry(context(2), How.SYSCALL, rax=39, r10=signature)
    for named, in_front, found in (
        (native, signature, []),
        (ia32, signature, []),
        (native, 0x90909090, [("CW101", "rip")]),
        (ia32, 0x90909090, [("CW101", "rip")]),
        (native, 0, []),  # not captured
        (other, 0x90909090, []),  # nobody has named any
    ):
        aborted = exit_(ctx | {"rip": ctx["rip"] + 0x40}, value=in_front)
        assert codes(stamp(batch(named, entry(ctx), switch(), aborted)), policy=policy) == found


def test_a_restartable_sequence_may_be_interrupted_on_purpose() -> None:
    """Another CPU asks this one to abort what it runs (Linux, membarrier): no thread ran in between."""
    ctx, signature = context(), 0x53053053
    named = entry(context(2), How.SYSCALL, rax=334, r10=signature)
    aborted = exit_(ctx | {"rip": ctx["rip"] + 0x40}, value=signature)
    for policy in (Policy(user_redirects=True, names_aborts=Calls((334,), (386,))), Policy()):
        assert codes(stamp(batch(switch(), named, entry(ctx), aborted)), policy=policy) == []


def test_without_a_profile_a_sequence_goes_on_behind_what_a_call_handed_the_kernel() -> None:
    ctx, signature = context(), 0x53053053
    native = entry(context(2), How.SYSCALL, r8=signature)
    ia32 = entry(context(2), How.SOFT, rbp=signature, flags=Flag.LINEAR32)
    small = entry(context(2), How.SYSCALL, r8=0x53053)
    wide = entry(context(2), How.SYSCALL, r8=signature | 0x7FFF << 32)
    kept = entry(context(2), How.SYSCALL, r12=signature)
    for handed, in_front, found in (
        (native, signature, []),
        (ia32, signature, []),
        (native, 0x90909090, [("CW101", "rip")]),
        (native, 0, [("CW101", "rip")]),  # not captured
        (small, 0x53053, [("CW101", "rip")]),  # a length, a descriptor
        (wide, signature, [("CW101", "rip")]),  # an address
        (kept, signature, [("CW101", "rip")]),  # no argument
    ):
        aborted = exit_(ctx | {"rip": ctx["rip"] + 0x40}, value=in_front)
        assert codes(stamp(batch(handed, entry(ctx), switch(), aborted))) == found
        late = stamp(batch(entry(ctx), switch(), aborted, handed))
        assert codes(late) == [("CW101", "rip")], "nobody had handed it over yet"


def test_what_calls_handed_the_kernel_is_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redirects, "SIGNATURES", 3)
    ctx, signature = context(), 0x53053053
    aborted = entry(ctx), switch(), exit_(ctx | {"rip": ctx["rip"] + 0x40}, value=signature)
    handed = entry(context(2), How.SYSCALL, rsi=signature)
    others = [entry(context(2), How.SYSCALL, rdi=redirects.LEAST + n) for n in range(3)]
    assert codes(stamp(batch(handed, *others[1:], *aborted))) == []
    assert codes(stamp(batch(handed, *others, handed, *aborted))) == []
    assert codes(stamp(batch(handed, *others, *aborted))) == [("CW101", "rip")]
