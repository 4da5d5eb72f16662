"""What system calls change on purpose, and contexts that begin where others began."""

from __future__ import annotations

from typing import Any

import pytest

from gdbext.arch.registers import GPR64
from gdbext.events.row import Batch, Kind
from gdbext.rules.draft import Draft
from gdbext.rules.engine import Engine
from gdbext.rules.explain import Explainer
from gdbext.rules.policy import Calls, Policy
from tests.rules.rows import KERNEL_RIP, Flag, How, batch, context, entry, exit_, stamp
from tests.rules.test_resume import codes
from tests.rules.test_stores import with_simd

SIGRETURN, PTRACE = 15, 101
LINUX = Policy(user_redirects=True, replaces_own=Calls((SIGRETURN,), (119, 173)), edits_others=Calls((PTRACE,), (26,)))


def call(ctx: dict[str, Any], number: int, how: int = How.SYSCALL, **changes: Any) -> Batch:
    """The entry of a system call made by the thread of `ctx`, from elsewhere."""
    return entry(ctx | {"rip": 0x500000, "rsp": ctx["rsp"] - 0x400}, how, rax=number, **changes)


def signalled(number: int = SIGRETURN, how: int = How.SYSCALL, **changes: Any) -> list[Batch]:
    """A thread is interrupted, its handler runs and makes a call, whose exit resumes the thread with `changes`."""
    ctx = context()
    handler = ctx | {"rip": 0x600000, "rsp": ctx["rsp"] - 0x300, "rdi": 14, "rsi": 5, "rdx": 6}
    return [entry(ctx), exit_(handler), call(ctx, number, how), exit_(ctx | changes)]


def test_a_handler_may_change_what_its_return_resumes() -> None:
    assert codes(*signalled(rdx=0xBEEF, rflags=0x247, rip=context()["rip"]), policy=LINUX) == []


@pytest.mark.parametrize("number", [119, 173])
def test_ia32_calls_have_numbers_of_their_own(number: int) -> None:
    assert codes(*signalled(number, How.SOFT, rdx=0xBEEF), policy=LINUX) == []
    assert codes(*signalled(number, rdx=0xBEEF), policy=LINUX) == [("CW101", "rdx")]


def test_any_other_call_changes_nothing() -> None:
    assert codes(*signalled(39, rdx=0xBEEF), policy=LINUX) == [("CW101", "rdx")]


def test_without_a_profile_a_call_that_does_not_return_replaces_its_caller() -> None:
    assert codes(*signalled(39, rdx=0xBEEF)) == []
    assert codes(*signalled(39, rdx=0xBEEF, fs_base=9)) == [("CW101", "rdx"), ("CW104", "fs_base")]
    ctx = context(fs_base=0)  # threads cannot be told apart
    assert codes(entry(ctx), call(ctx, 39), exit_(ctx | {"rdx": 0xBEEF})) == [("CW101", "rdx")]
    ctx = context()
    returned = [call(ctx, 39), exit_(ctx | {"rip": 0x500000, "rsp": ctx["rsp"] - 0x400, "rax": 0}, How.SYSRET)]
    assert codes(entry(ctx), *returned, exit_(ctx | {"rdx": 0xBEEF})) == [("CW101", "rdx")]


@pytest.mark.parametrize("policy", [LINUX, Policy()], ids=["linux", "no profile"])
def test_interrupted_code_does_not_get_back_what_sysret_destroys(policy: Policy) -> None:
    ctx = context()
    by_sysret = ctx | {"rcx": ctx["rip"], "r11": ctx["rflags"], "rdx": 0xBEEF}
    ends = entry(ctx), call(ctx, SIGRETURN), exit_(by_sysret, How.SYSRET)
    assert codes(*ends, policy=policy) == [("CW101", "rcx,r11")]
    in_call = entry(ctx, How.SYSCALL), call(ctx, SIGRETURN), exit_(by_sysret, How.SYSRET)
    assert codes(*in_call, policy=policy) == []


def test_a_handler_s_return_does_not_replace_the_bases() -> None:
    assert codes(*signalled(rdx=0xBEEF, gs_base=5), policy=LINUX) == [("CW204", "gs_base")]


@pytest.mark.parametrize("policy", [LINUX, Policy()], ids=["linux", "no profile"])
def test_a_handler_s_return_brings_back_the_fpu(policy: Policy) -> None:
    def found(*rows: Batch) -> list[tuple[str, str | None]]:
        engine = Engine(policy)
        engine.feed(stamp(batch(*(with_simd(row, xmm0) for row, xmm0 in zip(rows, (7, 7, 7, 9), strict=True)))))
        return [(finding.code, finding.field) for finding in engine.findings]

    assert found(*signalled()) == [("CW105", "xmm0")]
    assert found(*signalled(rdx=0xBEEF)) == []
    ctx, faulted = context(), signalled()
    faulted[0] = entry(ctx, How.EXCEPTION)
    assert found(*faulted) == []


def test_the_return_must_be_this_thread_s_and_after_the_interrupt() -> None:
    ctx, other = context(1), context(2)
    earlier = [call(ctx, SIGRETURN), entry(ctx), exit_(ctx | {"rdx": 0xBEEF})]
    assert codes(*earlier, policy=LINUX) == [("CW101", "rdx")]
    somebody = [entry(ctx), call(other, SIGRETURN), exit_(ctx | {"rdx": 0xBEEF})]
    assert codes(*somebody, policy=LINUX) == [("CW101", "rdx")]


def request() -> list[Batch]:
    """A tracer's call, made and returned."""
    tracer = context(2)
    return [entry(tracer, How.SYSCALL, rax=PTRACE), exit_(tracer, How.SYSRET, rax=0)]


def test_a_tracer_may_change_a_waiting_context() -> None:
    ctx = context(1)
    changed = ctx | {"r13": 7, "rflags": 0x346, "fs_base": 9}
    assert codes(entry(ctx), *request(), exit_(changed), policy=LINUX) == []
    assert codes(*request(), entry(ctx), exit_(changed), policy=LINUX) == [
        ("CW101", "r13"),
        ("CW102", "rflags"),
        ("CW104", "fs_base"),
    ]


def test_without_a_profile_a_stepped_thread_is_only_worth_a_warning() -> None:
    for policy, severity in ((Policy(), "warning"), (LINUX, "error")):
        engine = Engine(policy)
        ctx = context(1)
        (finding,) = engine.feed(batch(entry(ctx), exit_(ctx | {"rflags": ctx["rflags"] | 0x100})))
        assert (finding.code, finding.severity) == ("CW102", severity)
        assert ("hence a warning" in finding.cause) == (severity == "warning")


def test_a_stepped_thread_s_sysenter_knows_no_status_flags() -> None:
    engine, ctx = Engine(), context(1, rflags=0x202)
    rows = [entry(ctx, How.SYSENTER, flags=Flag.FLAGS_PARTIAL), exit_(ctx | {"rflags": 0x346})]
    (finding,) = engine.feed(batch(*rows))
    assert (finding.code, finding.severity) == ("CW102", "warning")


def test_what_a_warning_shows_besides_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Explainer, "_explain", lambda *_: [Draft("CW302", "cause", "look")])
    for how, severity in ((How.EXCEPTION, "warning"), (How.INTERRUPT, "error")):
        engine, ctx = Engine(), context(1)
        vector = 1 if how == How.EXCEPTION else 32
        found = engine.feed(batch(entry(ctx, how, vector=vector), exit_(ctx | {"rbx": 5})))
        assert [(finding.code, finding.severity) for finding in found] == [("CW101", severity), ("CW302", severity)]


def test_kernel_code_has_no_tracer() -> None:
    ctx = context(1, user=False)
    assert codes(entry(ctx), *request(), exit_(ctx | {"r13": 7}), policy=LINUX) == [("CW101", "r13")]


def test_fork_s_children_begin_alike_in_spaces_of_their_own() -> None:
    child, sibling = context(1, cr3=0x800000), context(1, cr3=0x900000)
    rows = [exit_(child), entry(child, How.EXCEPTION), exit_(sibling), entry(sibling), exit_(child), exit_(sibling)]
    assert codes(*rows) == []


def test_a_context_resumed_in_another_space_is_still_told() -> None:
    ctx = context(1)
    assert codes(entry(ctx), exit_(ctx | {"cr3": 0x900000})) == [("CW107", "cr3")]


def test_a_handler_that_is_interrupted_at_its_start_may_be_called_again() -> None:
    ctx = context(1)
    handler = ctx | {"rip": 0x600000, "rsp": ctx["rsp"] - 0x300, "rdi": 14, "rsi": 5, "rdx": 6}
    nested = handler | {"rsp": handler["rsp"] - 0x300, "rsi": 7, "rdx": 8}
    twice = [entry(ctx), exit_(handler), entry(handler), exit_(nested)]
    assert codes(*twice, policy=LINUX) == []
    once = [entry(ctx), exit_(handler), entry(handler), exit_(handler), call(ctx, SIGRETURN), exit_(ctx)]
    assert codes(*once, entry(ctx), exit_(handler), policy=LINUX) == []


def test_32_bit_handlers_replace_the_tls_selector_s_base_too() -> None:
    flags = {"flags": Flag.LINEAR32}
    ctx = context(1)
    rows = [entry(ctx, **flags), call(ctx, 173, How.SOFT, **flags), exit_(ctx | {"rdx": 7, "gs_base": 5}, **flags)]
    assert codes(*rows, policy=LINUX) == []


def test_a_clone_s_new_thread_is_not_its_maker_interrupted_at_the_same_place() -> None:
    """The first thread ever made: nothing is known to begin there yet."""
    maker = context(3)
    made = [entry(maker, How.SYSCALL), exit_(maker | {"rax": 77}, How.SYSRET), entry(maker | {"rax": 77})]
    thread = exit_(maker | {"rsp": 0x600000, "rax": 0})
    assert codes(*made, thread) == []
    assert codes(*made[2:], thread) == [("CW101", "rax,rsp")]
    assert codes(*made, exit_(maker | {"rsp": 0x600000, "rax": 0, "rbx": 5})) == [("CW101", "rax,rbx,rsp")]
    assert codes(*made, exit_(maker | {"rsp": maker["rsp"] + 8, "rax": 77})) == [("CW101", "rsp")]  # no other's stack


def forked(**changes: Any) -> list[Batch]:
    """A process ends in a call, another one forks at the same place, and its child gets the first one's page tables."""
    parent = context(3)
    gone, child = context(5) | {name: parent[name] for name in ("rip", "rsp")}, parent | {"rax": 0, "cr3": 0x500000}
    last, fork = entry(gone, How.SYSCALL), entry(parent, How.SYSCALL)
    return [last, fork, exit_(parent | {"rax": 77}, How.SYSRET), exit_(child | changes)]


def test_a_fork_s_child_with_the_page_tables_of_a_process_that_is_over() -> None:
    assert codes(*forked()) == []
    assert [code for code, _ in codes(*forked(rbx=5))] == ["CW106", "CW104"]
    call_, *_, child = forked()
    assert [code for code, _ in codes(call_, child)] == ["CW106", "CW104"]  # nobody forked


def switched(**changes: Any) -> list[Batch]:
    """A thread without FS base calls, is sent elsewhere, calls from there and is sent back, with `changes`."""
    ctx = context(fs_base=0)
    other = context(7, fs_base=0, cr3=ctx["cr3"])
    moved = entry(ctx, how=How.INTERRUPT)
    moved["kind"] = Kind.CR3  # this CPU is seen to switch, before
    return [moved, call(ctx, 39), exit_(other), call(other, 39), exit_(ctx | {"rip": 0x500000} | _above(ctx) | changes)]


def _above(ctx: dict[str, Any]) -> dict[str, Any]:
    return {"rsp": ctx["rsp"] - 0x400}


def test_a_call_may_go_back_to_an_older_context_of_its_caller() -> None:
    assert codes(*switched(rdx=0xBEEF, rflags=0x202)) == []
    assert codes(*switched(rdx=0xBEEF), policy=LINUX) == [("CW106", "rdx")]


@pytest.mark.parametrize(("loaded", "found"), [(0x1000, []), (0x1005, []), (0x5000, [("CW106", "rdx")])])
def test_the_other_copy_of_the_same_page_tables_is_no_switch(loaded: int, found: list[tuple[str, str]]) -> None:
    *rows, back = switched(rdx=0xBEEF)
    isolation = rows[0].copy()
    isolation["value"], isolation["seq"] = context()["cr3"] ^ loaded, back["seq"]
    back["seq"] += 1
    assert codes(*rows, isolation, back) == found


@pytest.mark.parametrize(("resumes", "found"), [(True, []), (False, [("CW106", "rdx")])])
def test_a_switch_inside_a_handler_that_has_returned_is_over(resumes: bool, found: list[tuple[str, str]]) -> None:
    *rows, back = switched(rdx=0xBEEF)
    tick = entry(context(3, user=False))
    turn = tick.copy()
    turn["kind"], turn["how"], turn["vector"] = Kind.SWITCH_OUT, 0, 0
    turn["rsp"], turn["pc"], turn["rip"] = tick["rsp"] - 0x400, KERNEL_RIP + 0x2000, KERNEL_RIP + 0x2000
    over = exit_(context(3 if resumes else 4, user=False))
    for number, row in enumerate([*rows, tick, turn, over, back], 1):
        row["seq"] = number
    over["match"] = tick["seq"] if resumes else 0
    for cut in (1, 99):
        every, engine = batch(*rows, tick, turn, over, back), Engine()
        for at in range(0, len(every), cut):
            engine.feed(every[at : at + cut])
        assert [(finding.code, finding.field) for finding in engine.findings] == found


def test_a_call_that_returns_its_caller_s_registers_on_another_stack_does_not_go_back() -> None:
    other = context(7)
    wrong = {name: other[name] for name in GPR64 if name != "rsp"}
    assert [code for code, _ in codes(*switched(**wrong))] != []


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"error": 0xE0E0}, [("CW101", "rax")]),
        ({"error": 0}, [("CW101", "rax")]),
        ({"error": 0xE0E6}, [("CW101", "rax")]),  # a gate's number
        ({"vector": 14}, [("CW101", "rax")]),
    ],
)
def test_a_handler_may_replace_the_selector_that_was_refused(
    changes: dict[str, int], found: list[tuple[str, str]]
) -> None:
    ctx = context(user=False, rax=0x926E0E4)
    refused = entry(ctx, How.EXCEPTION, **({"vector": 13, "error": 0xE0E4} | changes))
    assert codes(refused, exit_(ctx | {"rax": 0})) == found


def test_other_registers_than_a_refused_selector_s_come_back() -> None:
    ctx = context(user=False, rax=0x926E0E4)
    refused = entry(ctx, How.EXCEPTION, vector=13, error=0xE0E4)
    assert codes(refused, exit_(ctx | {"rax": 0, "rbx": 5})) == [("CW101", "rbx")]
