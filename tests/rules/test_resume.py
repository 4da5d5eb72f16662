"""The law on single events: each bug by its code, each legitimate change in silence, whatever the batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gdbext.arch import vectors
from gdbext.arch.registers import GPR64
from gdbext.events.row import ROW, Batch
from gdbext.rules.engine import Engine
from gdbext.rules.fixups import Fixups
from gdbext.rules.policy import Policy
from tests.rules.rows import Flag, How, Kind, batch, context, entry, exit_, stamp

FRAME = 0xFFFFFFFF80300000


def codes(*rows: Batch, policy: Policy | None = None) -> list[tuple[str, str | None]]:
    """Judge the rows as one batch, then one by one, then inside a crowd of clean pairs: always the same verdicts."""
    whole = batch(*rows)
    crowd = [r for n in range(50, 70) for r in (entry(context(n)), exit_(context(n)))]
    results = []
    for feeds in ([whole], [whole[i : i + 1] for i in range(len(whole))], [stamp(batch(*crowd, *rows))]):
        engine = Engine(policy)
        for feed in feeds:
            engine.feed(feed)
        results.append([(finding.code, finding.field) for finding in engine.findings])
    assert results[0] == results[1] == results[2]
    return results[0]


def test_bit_identical_resume_is_silent() -> None:
    assert codes(entry(context()), exit_(context())) == []


def test_contexts_of_other_address_spaces_do_not_mix() -> None:
    one, two = context(1), context(1, cr3=0x900000, rbx=5)
    assert codes(entry(one), entry(two), exit_(one), exit_(two)) == []


@pytest.mark.parametrize("lost", ["rbx", "r8", "r15", "rax"])
def test_lost_register(lost: str) -> None:
    assert codes(entry(context()), exit_(context() | {lost: 0xDEAD})) == [("CW101", lost)]


def said(*rows: Batch) -> tuple[str, str]:
    """Cause and advice of the one finding."""
    engine = Engine()
    (finding,) = engine.feed(stamp(batch(*rows)))
    return finding.cause, finding.look_at


def test_advice_for_a_lost_gs_base_holds_of_a_kernel_that_does_not_swap() -> None:
    assert "the GS base itself" in said(entry(context()), exit_(context(gs_base=0x9000)))[1]


def test_what_an_interrupt_stopped_may_not_leave_by_sysret() -> None:
    cause, look = said(entry(context()), exit_(context(), How.SYSRET))
    assert "takes RIP from RCX" in cause
    assert "only a system call may leave by sysret" in look


def test_a_vector_number_in_a_register_tells_of_an_error_code() -> None:
    ctx = context()
    moved = ctx | {"r9": vectors.PF, "rbx": ctx["r9"], "r15": ctx["rbx"]}
    cause, look = said(entry(ctx, How.EXCEPTION, vector=vectors.PF), exit_(moved))
    assert "r9 came back with 0xe, the number of the vector" in cause
    assert "error code" in look


def test_exchanged_registers_are_both_named() -> None:
    ctx = context()
    engine = Engine()
    engine.feed(batch(entry(ctx), exit_(ctx | {"r12": ctx["r13"], "r13": ctx["r12"]})))
    (finding,) = engine.findings
    assert finding.code == "CW101"
    assert finding.field == "r12,r13"
    assert "exchanged" in finding.cause


def test_lost_flags_and_where_they_come_from() -> None:
    engine = Engine()
    engine.feed(batch(entry(context(rflags=0x202), How.SYSCALL), exit_(context(rflags=0x202), How.SYSRET)))
    engine.feed(batch(entry(context(rip=0x400200, rflags=0x246)), exit_(context(rip=0x400200, rflags=0x202))))
    (finding,) = engine.findings
    assert (finding.code, finding.field, finding.match) == ("CW102", "rflags", "exact")
    assert "ZF lost" in finding.cause
    assert "system call at event" in finding.cause


def test_resume_flag_may_change() -> None:
    assert codes(entry(context(rflags=0x246)), exit_(context(rflags=0x10246))) == []


def test_selectors_count_for_32_bit_code_only() -> None:
    assert codes(entry(context(ds=0x2B)), exit_(context(ds=0x18))) == []
    flags = {"flags": Flag.LINEAR32}
    assert codes(entry(context(ds=0x2B), **flags), exit_(context(ds=0x18), **flags)) == [("CW103", "ds")]


def test_32_bit_code_has_eight_registers_and_four_null_selectors() -> None:
    flags = {"flags": Flag.LINEAR32}
    assert codes(entry(context(fs=0), **flags), exit_(context(fs=3, r8=5, r11=6), **flags)) == []
    assert codes(entry(context(fs=0), **flags), exit_(context(fs=4, rdi=5), **flags)) == [
        ("CW101", "rdi"),
        ("CW103", "fs"),
    ]


def test_fs_base_of_user_code_only() -> None:
    assert codes(entry(context()), exit_(context(fs_base=0))) == [("CW104", "fs_base")]
    assert codes(entry(context(user=False)), exit_(context(user=False, fs_base=7))) == []


def test_a_gs_base_that_is_cleared_where_there_is_no_kernels_one() -> None:
    ctx = context(kernel_gs_base=0)
    assert codes(entry(ctx), exit_(ctx | {"gs_base": 0})) == [("CW204", "gs_base")]
    small = ctx | {"mode": 32, "flags": Flag.LINEAR32 | Flag.NO_KERNEL_GS}
    assert codes(entry(small), exit_(small | {"gs_base": 0})) == [("CW204", "gs_base")]


def test_system_call_may_set_fs_base_to_its_argument() -> None:
    ctx = context(rsi=0xABC000)
    after = ctx | {"rax": 0, "fs_base": 0xABC000}
    assert codes(entry(ctx, How.SYSCALL), exit_(after, How.SYSRET)) == []
    assert codes(entry(ctx, How.SYSCALL), exit_(after | {"fs_base": 0x123000}, How.SYSRET)) == [("CW104", "fs_base")]


def test_a_register_that_is_zero_asks_for_nothing() -> None:
    ctx = context(rdx=0)
    assert codes(entry(ctx, How.SYSCALL), exit_(ctx | {"fs_base": 0}, How.SYSRET)) == [("CW104", "fs_base")]
    assert codes(entry(ctx | {"fs": 0x53}, How.SYSCALL), exit_(ctx | {"fs": 0}, How.SYSRET)) == []
    small = ctx | {"mode": 32, "flags": Flag.LINEAR32, "fs": 0x23}
    assert codes(entry(small, How.SOFT), exit_(small | {"fs": 0})) == [("CW103", "fs")]


def test_system_call_changes_its_result_only() -> None:
    ctx = context()
    assert codes(entry(ctx, How.SYSCALL), exit_(ctx | {"rax": 9}, How.SYSRET)) == []
    assert codes(entry(ctx, How.SYSCALL), exit_(ctx | {"rax": 9, "rdx": 9}, How.SYSRET)) == [("CW106", "rdx")]
    assert codes(entry(ctx, How.SYSCALL), exit_(ctx | {"rcx": 9, "r11": 9}, How.SYSRET)) == []
    assert codes(entry(ctx, How.SOFT), exit_(ctx | {"rdx": 9})) == [("CW106", "rdx")]
    assert codes(entry(ctx, How.SOFT), exit_(ctx | {"rcx": 9})) == [("CW106", "rcx")]
    returns = Policy(syscall_returns=frozenset({"rax", "rdx", "rcx", "r11"}))
    assert codes(entry(ctx, How.SYSCALL), exit_(ctx | {"rdx": 9}, How.SYSRET), policy=returns) == []


def test_restarted_system_call_is_silent() -> None:
    ctx = context()
    assert codes(entry(ctx, How.SYSCALL), exit_(ctx | {"rip": ctx["rip"] - 2, "rax": 1}, How.SYSRET)) == []


def test_registers_of_another_context() -> None:
    one, two = context(1), context(2)
    wrong = two | {"rip": one["rip"], "rsp": one["rsp"], "cr3": one["cr3"], "fs_base": one["fs_base"]}
    assert [code for code, _ in codes(entry(two), entry(one), exit_(wrong))] == ["CW107"]


def test_user_stack_of_another_thread_in_a_system_call() -> None:
    one, two = context(1), context(2, cr3=0x100000)
    wrong = one | {"rsp": two["rsp"]}
    assert codes(entry(two, How.SYSCALL), entry(one, How.SYSCALL), exit_(wrong, How.SYSRET)) == [("CW107", "rsp")]


def test_new_thread_of_a_clone_is_silent() -> None:
    ctx = context()
    assert codes(entry(ctx, How.SYSCALL), exit_(ctx | {"rsp": 0x600000, "rax": 0}, How.SYSRET)) == []


def test_wrong_address_space() -> None:
    assert codes(entry(context()), exit_(context(cr3=0x55000000))) == [("CW107", "cr3")]


@pytest.mark.parametrize(("bits", "apart"), [(64, 0x2000), (64, 0x1000), (32, 0x1000), (32, 0x20)])
def test_a_fork_in_the_neighbouring_tables_is_another_context(bits: int, apart: int) -> None:
    """Its maker's registers stay its own, and the call that it left when it was killed is nobody's."""
    maker = context(1, cr3=0x1CF6000)
    left = maker | {"cr3": 0x1CF6000 + apart, "rbx": 3}
    rows = [entry(left, How.SOFT), entry(maker, How.SOFT, rip=maker["rip"] - 2), exit_(maker)]
    for row in rows:
        row["mode"] = bits
    assert codes(*rows) == []


@pytest.mark.parametrize(("bits", "look"), [(64, "wrmsr"), (32, "the descriptor that FS names")])
def test_where_the_base_of_a_segment_comes_from(bits: int, look: str) -> None:
    ctx = context(fs_base=0x5000)
    rows = entry(ctx), exit_(ctx | {"fs_base": 0x6000})
    for row in rows:
        row["mode"] = bits
    engine = Engine()
    (finding,) = engine.feed(stamp(batch(*rows)))
    assert finding.code == "CW104"
    assert look in finding.look_at


@pytest.mark.parametrize(("first", "expected"), [(False, [("CW107", "cr3")]), (True, [])])
def test_a_call_under_page_tables_that_others_live_in(first: bool, expected: list[tuple[str, str]]) -> None:
    """Whoever waited there before the call may be dead: a fork's child may have the page tables since."""
    mine, others = context(1, fs_base=0x7000), context(2, cr3=0x55000000, fs_base=0x8000)
    call, stopped = entry(mine, How.SYSCALL), entry(others)
    back = exit_(mine | {"cr3": 0x55000000, "rax": 5}, How.SYSRET)
    assert codes(*([stopped, call] if first else [call, stopped]), back) == expected


def test_fork_child_is_silent() -> None:
    ctx = context()
    assert codes(entry(ctx, How.SYSCALL), exit_(ctx | {"rax": 0, "cr3": 0x55000000}, How.SYSRET)) == []


def test_fixup_changes_rip_alone() -> None:
    ctx = context(user=False)
    there = ctx["rip"] + 0x40
    assert codes(entry(ctx, How.EXCEPTION), exit_(ctx | {"rip": there})) == []
    known = Policy(fixups=Fixups(frozenset({(ctx["rip"], there)})))
    assert codes(entry(ctx, How.EXCEPTION), exit_(ctx | {"rip": there}), policy=known) == []
    assert codes(entry(ctx, How.EXCEPTION), exit_(ctx | {"rip": there + 8}), policy=known) == [("CW101", "rip")]
    assert codes(entry(ctx, How.INTERRUPT), exit_(ctx | {"rip": there})) == [("CW101", "rip")]


def test_first_run_is_silent() -> None:
    assert codes(exit_(context(3))) == []


def test_signal_delivery_and_return_are_silent() -> None:
    ctx = context()
    handler = ctx | {"rip": 0x401000, "rsp": ctx["rsp"] - 0x400, "rdi": 11, "rsi": 1, "rdx": 2, "rax": 0}
    assert codes(entry(ctx, How.EXCEPTION), exit_(handler), exit_(ctx)) == []


def test_two_kernel_frames_dropped_at_once_are_silent() -> None:
    user, kernel = context(1), context(2, user=False)
    rows = entry(user, How.SYSCALL), entry(kernel, How.EXCEPTION), exit_(user | {"rax": 14}, How.SYSRET)
    assert codes(*rows, entry(user | {"rip": 0x400300}), exit_(user | {"rip": 0x400300})) == []


def switch(kind: int = Kind.SWITCH_IN, cpu: int = 0, **fields: int) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["mode"], row["cpu"] = kind, 64, cpu
    for name, value in fields.items():
        row[name] = value
    return row


def test_user_code_with_the_kernel_s_privilege() -> None:
    assert codes(entry(context()), exit_(context(cs=0x30))) == [("CW603", "cs")]


def test_ia32_user_code_with_the_kernel_s_privilege() -> None:
    ctx = context(cs=0x73, ss=0x7B)
    narrow: dict[str, Any] = {"mode": 32, "flags": Flag.LINEAR32}
    frame = [ctx["rip"], 0x70, ctx["rflags"], ctx["rsp"], 0x7B, 0, 0, 0]
    wrong = ctx | {"cs": 0x70, "rsp": FRAME + 12, "ss": 0x68}
    after = exit_(wrong, **narrow | {"flags": Flag.LINEAR32 | Flag.NO_STACK, "stack": [frame]})
    assert ("CW603", "cs") in codes(entry(ctx, **narrow), after)


def test_serialising_iret_is_no_return() -> None:
    ctx = context(user=False)
    assert codes(entry(ctx), exit_(context(9, user=False), flags=Flag.SELF), exit_(ctx)) == []


@pytest.mark.parametrize("words", [-2, -1, 1, 2])
def test_unbalanced_frame(words: int) -> None:
    ctx = context()
    before = entry(ctx, How.EXCEPTION)
    memory = [4, 0x33000, *before["stack"][0][:5].tolist(), 0, 0, 0, 0, 0, 0]
    popped = memory[2 + words : 10 + words]
    fields = dict(zip(("rip", "cs", "rflags", "rsp", "ss"), popped, strict=False))
    fields = {name: value & (0xFFFF if name in ("cs", "ss") else 2**64 - 1) for name, value in fields.items()}
    after = exit_(ctx | fields, frame=FRAME + 8 * words, stack=[popped])
    assert codes(before, after) == [("CW301", "rsp")]


@pytest.mark.parametrize(("mode", "pushed", "moved"), [(32, 4, 4), (64, 8, 16)])
def test_a_context_that_is_moved_by_what_its_code_has_pushed(mode: int, pushed: int, moved: int) -> None:
    """An idle thread whose stack begins where its context is kept; 64-bit frames are aligned besides."""
    flags = Flag.LINEAR32 | Flag.NO_STACK if mode == 32 else 0
    stack = FRAME + (12 if mode == 32 else 40)
    ctx = context(user=False, rip=0xE0116000, rsp=stack, cs=8, ss=0x10, rflags=0x202, mode=mode, flags=flags)
    begins, elsewhere = exit_(ctx, frame=FRAME), exit_(ctx, frame=FRAME - 0x400)
    hangs = ctx | {"rip": 0xE0116001, "rsp": stack - pushed}
    words = [hangs[name] for name in (("rip", "cs", "rflags", "rsp", "ss") if mode == 64 else ("rip", "cs", "rflags"))]
    frame = [*words, 7, 7, 7, 7, 7][:8]
    popped = [*frame[moved // (mode // 8) :], 0, 0][:8]
    wrong = dict(zip(("rip", "cs", "rflags"), popped, strict=False))
    wrong["cs"] &= 0xFFFF
    there = entry(hangs, frame=FRAME - moved, stack=[frame])
    back = exit_(ctx | wrong, frame=FRAME, stack=[popped])
    assert codes(begins, there, back) == [("CW402", "rsp")]
    assert codes(elsewhere, there, back) == [("CW301", "rsp")]


def test_unbalanced_frame_after_a_fixup() -> None:
    ctx = context(2, user=False)
    before = entry(ctx, How.EXCEPTION)
    popped = [0, ctx["rip"] + 5, ctx["cs"], ctx["rflags"], ctx["rsp"], ctx["ss"], 0, 0]
    wrong = {"rip": 0, "cs": popped[1] & 0xFFFF, "rflags": popped[2], "rsp": popped[3], "ss": popped[4] & 0xFFFF}
    assert codes(before, exit_(ctx | wrong, frame=FRAME - 8, stack=[popped])) == [("CW301", "rsp")]


def test_unbalanced_frame_of_three_words_after_a_fixup() -> None:
    ctx = context(user=False, rip=0xC0100200, cs=8, rflags=0x10046, mode=32, flags=Flag.LINEAR32 | Flag.NO_STACK)
    before = entry(ctx, How.EXCEPTION, stack=[[ctx["rip"], 8, 0x10046, 1, 2, 3, 4, 5]])
    popped = [2, ctx["rip"] + 9, 8, 0x10046, 1, 2, 3, 4]
    wrong = {"rip": 2, "cs": popped[1] & 0xFFFF, "rflags": 8}
    assert codes(before, exit_(ctx | wrong, frame=FRAME - 4, stack=[popped])) == [("CW301", "rsp")]
    popped[1] = 0x1B  # a context of its own
    assert codes(before, exit_(ctx | wrong | {"cs": 0x1B}, frame=FRAME - 4, stack=[popped]))[:1] != [("CW301", "rsp")]


def test_unbalanced_copy_of_a_frame() -> None:
    """The kernel returns from a copy of the frame that lies elsewhere, and RSP is a word below it."""
    ctx = context()
    popped = [0x7F, ctx["rip"], ctx["cs"], ctx["rflags"], ctx["rsp"], ctx["ss"], 0, 0]
    wrong = {"rip": 0x7F, "cs": ctx["rip"] & 0xFFFF, "rflags": ctx["cs"], "rsp": ctx["rflags"], "ss": 0}
    assert codes(entry(ctx), exit_(ctx | wrong, frame=FRAME + 0x10000, stack=[popped])) == [("CW301", "rsp")]


@pytest.mark.parametrize("words", [-1, 1])
def test_frame_that_is_not_there(words: int) -> None:
    """Above a stack's last frame there may be no memory: what iret would pop cannot be read."""
    ctx, nothing = context(), dict.fromkeys(("rip", "cs", "rflags", "rsp", "ss"), 0)
    after = exit_(ctx | nothing, frame=FRAME + 8 * words, flags=Flag.UNREADABLE, stack=[[0] * 8])
    assert codes(entry(ctx), after) == [("CW301", "rsp")]
    assert codes(entry(ctx), exit_(ctx | nothing, flags=Flag.UNREADABLE)) == []
    copied = exit_(ctx | nothing, frame=FRAME + 0x10000, flags=Flag.UNREADABLE)  # no frame lies beside it
    assert codes(entry(ctx), copied) == [("CW301", "rsp")]
    copied["mode"] = 32
    assert codes(entry(ctx), copied) == []


def test_rebuilt_frame_elsewhere_is_silent() -> None:
    assert codes(entry(context()), exit_(context(), frame=FRAME + 8)) == []


def test_noncanonical_return() -> None:
    ctx = context()
    assert codes(entry(ctx, How.SYSCALL), exit_(ctx | {"rip": 0x800000000000}, How.SYSRET)) == [("CW601", "rip")]


def test_interrupts_off_in_user() -> None:
    assert codes(exit_(context(rflags=0x46))) == [("CW602", "rflags")]
    got = codes(entry(context(rflags=0x246)), exit_(context(rflags=0x46)))
    assert got == [("CW602", "rflags")]


def test_iopl_leak() -> None:
    assert codes(exit_(context(rflags=0x3246))) == [("CW603", "rflags")]
    assert codes(exit_(context(rflags=0x3246)), policy=Policy(user_iopl=True)) == []


def test_user_code_with_nested_task_flag_of_its_own_is_silent() -> None:
    assert codes(entry(context(rflags=0x4246)), exit_(context(rflags=0x4246))) == []


def test_bad_star_blames_the_sysret_once() -> None:
    ctx = context()
    bad = ctx | {"ss": 0x28}
    sysret = exit_(ctx, How.SYSRET, pc=0xFFFFFFFF80000AAA)
    rows = entry(ctx, How.SYSCALL), sysret, entry(bad), exit_(bad)
    assert codes(*rows) == [("CW604", "ss")]
    engine = Engine()
    engine.feed(batch(*rows))
    (finding,) = engine.findings
    assert finding.pc == 0xFFFFFFFF80000AAA
    assert finding.event == int(sysret["seq"][0])
    assert "sysret" in finding.cause


def test_equal_findings_are_counted() -> None:
    engine = Engine()
    for _ in range(5):
        engine.feed(batch(entry(context()), exit_(context(rbx=1))))
    (finding,) = engine.findings
    assert finding.count == 5


def test_codes_can_be_chosen() -> None:
    engine = Engine(codes={"CW102"})
    engine.feed(batch(entry(context()), exit_(context(rbx=1))))
    assert engine.findings == []


def test_counts() -> None:
    engine = Engine()
    ctx = context()
    engine.feed(batch(entry(ctx), exit_(ctx), entry(ctx, How.SYSCALL), exit_(ctx, How.SYSRET), exit_(context(7))))
    counts = engine.counts
    assert (counts.entries, counts.exits, counts.syscalls, counts.identical, counts.unmatched) == (2, 3, 1, 2, 1)


def test_pending_is_bounded() -> None:
    engine = Engine()
    for start in range(0, 10_000, 1000):
        engine.feed(np.concatenate([entry(context(1, rip=start + n)) for n in range(1000)]))
    assert len(engine.pending()) == 4096


def test_sysret_onto_the_kernels_stack_segment() -> None:
    ctx, kernel = context(), context(2, user=False)
    bad = ctx | {"ss": 0x1B}
    sysret = exit_(ctx, How.SYSRET, pc=0xFFFFFFFF80000AAA)
    assert codes(entry(kernel), exit_(kernel), entry(ctx, How.SYSCALL), sysret, entry(bad)) == [("CW604", "ss")]


def test_user_stacks_in_a_local_table_beside_tasks_in_ring_1() -> None:
    """The same index of the other table, and the segment of code in ring 1, are not the kernel's own."""
    ctx = context(cs=0x07, ss=0x0F)
    kernel = context(2, user=False, cs=0x08, ss=0x08)
    task = context(3, user=False, cs=0x05, ss=0x0D)
    assert codes(entry(kernel), exit_(kernel), entry(task), exit_(task), entry(ctx), exit_(ctx)) == []


def test_iret_that_faults_on_what_sysret_loaded() -> None:
    ctx, kernel = context(), context(2, user=False, rip=0xFFFFFFFF80001900)
    bad = ctx | {"ss": 0x43}
    rows = entry(ctx, How.SYSCALL), exit_(ctx, How.SYSRET), entry(bad), exit_(bad)
    fault = entry(kernel, How.EXCEPTION, vector=13, error=0x40)
    assert codes(*rows, fault) == [("CW604", "ss")]
    assert codes(exit_(bad), fault) == []  # a context made by hand, as a signal return may


def test_iret_that_faults_on_the_code_segment_that_a_sysret_of_another_cpu_loaded() -> None:
    ctx, kernel = context(cs=0x2B), context(2, user=False, rip=0xFFFFFFFF80001900)
    sysret = exit_(ctx | {"ss": 0x20}, How.SYSRET, cpu=1, pc=0xFFFFFFFF80000AAA)
    iret = exit_(ctx | {"ss": 0x23}, rip=0x400123)
    fault = entry(kernel, How.EXCEPTION, vector=vectors.UNKNOWN, error=0x28)
    assert codes(entry(ctx, How.SYSCALL, cpu=1), sysret, iret, fault) == [("CW604", "cs")]
    assert codes(iret, fault) == []  # its frame is what user code asked for
    elsewhere = exit_(ctx | {"ss": 0x2B}, How.SYSRET, cpu=1, pc=0xFFFFFFFF80000AAA)
    assert codes(elsewhere, iret, fault) == []


def test_a_thread_interrupted_where_it_begins_goes_on_on_its_stack_unless_another_ran() -> None:
    """With registers that hold nothing, it differs from the next one that begins there by RSP alone."""
    ctx = context(fs_base=0x5000) | {name: 0 for name in GPR64 if name != "rsp"}
    begins, stops, lost = exit_(ctx), entry(ctx), exit_(ctx | {"rsp": 0xFFFF_8000_0000_1000})
    assert codes(stamp(batch(switch(), begins, stops, lost))) == [("CW101", "rsp")]
    assert codes(stamp(batch(switch(), begins, stops, switch(Kind.SWITCH_OUT), lost))) == []
    assert codes(stamp(batch(begins, stops, lost))) == []
    assert codes(stamp(batch(switch(Kind.CR3, value=0x900000), begins, stops, lost))) == []
    nobody = {"fs_base": 0}  # any thread's
    assert codes(stamp(batch(switch(), begins, entry(ctx | nobody), exit_(ctx | {"rsp": 0x1000} | nobody)))) == []


@pytest.mark.parametrize(("words", "code"), [(1, "CW101"), (8, "CW101"), (9, "CW107"), (-2, "CW101")])
def test_rsp_off_by_a_few_words_is_another_contexts_by_chance_only(words: int, code: str) -> None:
    mine, other = context(1), context(2)
    other["rsp"] = mine["rsp"] + 8 * words
    rows = [entry(other, frame=0xFFFFFFFF80400000), entry(mine), exit_(mine | {"rsp": other["rsp"]})]
    assert codes(*rows) == [(code, "rsp")]


@pytest.mark.parametrize("how", [How.INTERRUPT, How.SOFT])
def test_rsp_off_by_a_few_words_where_the_registers_tell_little(how: int) -> None:
    """It is known by where its frame is, and by all else that is as it was."""
    bare = context(3) | dict.fromkeys(GPR64, 0) | {"rbx": 2, "rsp": 0x7F3000}
    wrong = bare | {"rsp": bare["rsp"] + 8}
    expected = "CW106" if how == How.SOFT else "CW101"
    assert codes(entry(bare, how), exit_(wrong)) == [(expected, "rsp")]
    assert codes(entry(bare, how), exit_(wrong, frame=FRAME + 0x1000)) == []
    assert codes(entry(bare, how), exit_(wrong, rbx=3)) == []
    assert codes(entry(bare, how), exit_(wrong, rsp=0x7F4000)) == []


def test_a_fork_s_child_is_not_the_caller_whose_page_tables_and_stack_it_got() -> None:
    bare = context(3) | dict.fromkeys(GPR64, 0) | {"rsp": 0x7F3000}
    parent = bare | {"rsp": bare["rsp"] + 8, "cr3": 0x900000}
    forks = entry(parent, How.SOFT, frame=FRAME + 0x1000)
    assert codes(entry(bare, How.SOFT), forks, exit_(parent | {"cr3": bare["cr3"]})) == []


def test_what_an_iret_pops_for_the_upper_half_of_rflags_is_not_loaded() -> None:
    ctx = context()
    assert codes(entry(ctx), exit_(ctx | {"rflags": ctx["rflags"] | 0xE010_0004 << 32})) == []
    assert codes(entry(ctx), exit_(ctx | {"rflags": ctx["rflags"] ^ 1 | 1 << 60})) == [("CW102", "rflags")]
