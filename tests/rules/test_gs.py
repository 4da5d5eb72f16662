"""GS by parity: each wrong swap by its code, each right pattern in silence, whatever the batches."""

from __future__ import annotations

import numpy as np

from gdbext.arch.registers import MSR_GS_BASE
from gdbext.events.row import ROW, Batch
from gdbext.rules.engine import Engine
from gdbext.rules.finding import Finding
from tests.rules.rows import KERNEL_BASE, KERNEL_RIP, Flag, How, Kind, batch, context, entry, exit_, stamp


def _event(kind: int, **fields: object) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["mode"], row["pc"] = kind, 64, KERNEL_RIP + 0x700
    row["gs_base"], row["kernel_gs_base"] = 0x7000, KERNEL_BASE
    for name, value in fields.items():
        row[name] = value
    return row


def swap(**fields: object) -> Batch:
    return _event(Kind.SWAPGS, **fields)


def access(**fields: object) -> Batch:
    return _event(Kind.GS_ACCESS, addr=8, **fields)


def write_base(value: int = KERNEL_BASE) -> Batch:
    return _event(Kind.BASE, how=How.WRBASE, addr=MSR_GS_BASE, value=value)


def normal(n: int = 1, how: int = How.INTERRUPT) -> list[Batch]:
    """A user context interrupted and resumed with a swap on either side."""
    ctx = context(n)
    leave = How.SYSRET if how == How.SYSCALL else How.IRET
    return [entry(ctx, how), swap(), swap(pc=KERNEL_RIP + 0x880), exit_(ctx, leave)]


def findings(*rows: Batch) -> list[Finding]:
    """What is found after a normal round, fed whole and one by one."""
    whole = stamp(batch(*normal(40), *rows))
    results = []
    for feeds in ([whole], [whole[i : i + 1] for i in range(len(whole))]):
        engine = Engine()
        for feed in feeds:
            engine.feed(feed)
        results.append(engine.findings)
    assert [finding.code for finding in results[0]] == [finding.code for finding in results[1]]
    return results[0]


def codes(*rows: Batch) -> list[str]:
    """The codes of :func:`findings`."""
    return [finding.code for finding in findings(*rows)]


KERNEL = context(2, user=False)


def test_swaps_on_both_sides() -> None:
    user = context(3)
    nested = entry(user), swap(), entry(KERNEL), exit_(KERNEL), swap(), exit_(user)
    assert codes(*normal(1), *normal(2, How.SYSCALL), *nested) == []


def test_kernel_that_never_swaps() -> None:
    engine = Engine()
    ctx = context()
    engine.feed(stamp(batch(*(r for _ in range(9) for r in (entry(ctx), entry(KERNEL), exit_(KERNEL), exit_(ctx))))))
    assert engine.findings == []


def test_exit_without_swap() -> None:
    ctx = context()
    assert codes(entry(ctx), swap(), exit_(ctx)) == ["CW201"]


def test_exit_to_kernel_with_swap() -> None:
    ctx = context()
    assert codes(entry(ctx), swap(), entry(KERNEL), swap(pc=KERNEL_RIP + 0x880), exit_(KERNEL)) == ["CW201"]


def test_exit_without_swap_behind_a_selector_load() -> None:
    ctx = context()
    load = swap(pc=KERNEL_RIP + 0xA00), swap(pc=KERNEL_RIP + 0xA08)
    healthy = entry(ctx), swap(), *load, swap(pc=KERNEL_RIP + 0x880), exit_(ctx)
    assert codes(*healthy, entry(ctx), swap(), *load, exit_(ctx)) == ["CW201"]


def test_exit_that_swaps_twice() -> None:
    ctx = context()
    assert codes(entry(ctx), swap(), swap(), swap(), exit_(ctx)) == ["CW203"]


def test_access_behind_an_entry_that_did_not_swap() -> None:
    ctx = context()
    assert codes(entry(ctx), access(), access()) == ["CW202"]


def test_entry_that_did_not_swap_told_by_its_exit() -> None:
    ctx = context()
    assert codes(entry(ctx), swap(pc=KERNEL_RIP + 0x880), exit_(ctx)) == ["CW202"]


def test_entry_from_kernel_that_swaps() -> None:
    ctx = context()
    rows = entry(ctx), swap(), entry(KERNEL), swap()
    assert codes(*rows, access()) == ["CW203"]
    assert codes(*rows, swap(pc=KERNEL_RIP + 0x880), exit_(KERNEL), swap(), exit_(ctx)) == ["CW203"]


def test_entry_from_kernel_that_swaps_and_faults_or_returns() -> None:
    ctx = context()
    fault = entry(KERNEL | {"rip": KERNEL_RIP + 0x730, "gs_base": 0x7000}, How.EXCEPTION)
    rows = entry(ctx), swap(), entry(KERNEL), swap()
    assert codes(*rows, fault)[0] == "CW203"
    assert codes(*rows, exit_(KERNEL)) == ["CW203"]  # the swap is the one that entries from user mode use


def test_fault_behind_an_entry_that_did_not_swap() -> None:
    fault = entry(KERNEL | {"gs_base": 0x7000}, How.EXCEPTION)
    assert codes(entry(context()), fault, fault) == ["CW202"]


def test_selector_load_on_the_users_side_is_silent() -> None:
    ctx = context()
    rows = entry(ctx), swap(), entry(KERNEL), swap(pc=KERNEL_RIP), swap(pc=KERNEL_RIP + 6), exit_(KERNEL)
    assert codes(*rows, swap(), exit_(ctx)) == []


def test_preempted_kernel_code_and_return_of_another_thread_is_silent() -> None:
    one, two = context(1), context(2)
    assert codes(entry(two), swap(), entry(KERNEL), swap(), exit_(one), entry(one), swap(), swap(), exit_(two)) == []


def test_nmi_in_a_handler_that_is_about_to_swap() -> None:
    """A debugger's breakpoint on sysret, and an NMI at the first instruction of its handler."""
    ctx = context()
    window, handler = KERNEL | {"gs_base": 0x7000}, KERNEL | {"gs_base": 0x7000, "rip": KERNEL_RIP + 0x520}
    debug = entry(window, How.EXCEPTION, vector=1, pc=KERNEL_RIP + 0x520, flags=Flag.IST, frame=0xFFFFFFFF80340000)
    nmi = entry(handler, How.NMI, flags=Flag.IST, frame=0xFFFFFFFF80350000)
    nested = nmi, swap(), swap(), exit_(handler, frame=0xFFFFFFFF80350000)
    back = exit_(window, frame=0xFFFFFFFF80340000)
    call = entry(ctx, How.SYSCALL), swap(), swap()
    assert codes(*call, debug, *nested, swap(), swap(), back, exit_(ctx, How.SYSRET)) == []


def test_nmi_in_window() -> None:
    ctx = context()
    nmi = entry(KERNEL | {"gs_base": 0x7000}, How.NMI, flags=Flag.IST)
    back = exit_(KERNEL | {"gs_base": 0x7000})
    paranoid = entry(ctx), nmi, swap(), swap(), back, swap(), swap(), exit_(ctx)
    assert codes(*paranoid) == []
    fsgsbase = entry(ctx), nmi, write_base(), write_base(), back, swap(), swap(), exit_(ctx)
    assert codes(*fsgsbase) == []
    assert codes(entry(ctx), nmi, access(), back) == ["CW501"]
    assert codes(entry(ctx), nmi, back, swap(), swap(), exit_(ctx)) == ["CW501"]


def test_fault_in_an_nmi_that_has_written_the_base() -> None:
    """Its handler counts on CS, and rightly: the kernel's base is active though none has swapped. Then it is not."""
    ctx, window = context(), KERNEL | {"gs_base": 0x7000}
    inside = KERNEL | {"rip": KERNEL_RIP + 0x560, "gs_base": KERNEL_BASE, "kernel_gs_base": KERNEL_BASE}
    nmi = entry(window, How.NMI, flags=Flag.IST, frame=0xFFFFFFFF80350000)
    again = entry(inside, How.EXCEPTION, vector=3), exit_(inside)
    back = write_base(0x7000), exit_(window, frame=0xFFFFFFFF80350000)
    left = swap(), swap(), exit_(ctx)
    assert codes(entry(ctx), nmi, write_base(), *again, *again, *back, *left) == []
    assert codes(entry(ctx), nmi, write_base(), *again, *back, nmi, access(), back[-1]) == ["CW501"]
    assert codes(entry(ctx), nmi, write_base(), *back, *again, *left) == ["CW501"]


def test_faulting_iret() -> None:
    ctx = context()
    fault = KERNEL | {"rip": KERNEL_RIP + 0x900, "gs_base": 0x7000}
    bad = entry(ctx), swap(), swap(), exit_(ctx), entry(fault, How.EXCEPTION, vector=13)
    assert codes(*bad, access()) == ["CW201"]
    assert codes(*bad, swap(), swap(), exit_(context(5))) == []


def test_interrupt_on_the_users_stack() -> None:
    ctx = context()
    early = KERNEL | {"rsp": ctx["rsp"]}
    rows = entry(ctx, How.SYSCALL), swap(), entry(early, frame=ctx["rsp"] - 40)
    (found,) = findings(*rows)
    assert (found.code, found.field) == ("CW501", "rsp")
    assert "GS base" not in found.cause


def test_interrupt_on_the_users_stack_with_the_users_base() -> None:
    """Between the swap back and sysret: one state, one finding."""
    ctx = context()
    late = entry(KERNEL | {"rsp": ctx["rsp"], "gs_base": 0x7000, "kernel_gs_base": KERNEL_BASE}, frame=ctx["rsp"] - 40)
    left = entry(ctx, How.SYSCALL), swap(), swap()
    (found,) = findings(*left, late, access())
    assert (found.code, found.field) == ("CW501", "rsp,gs_base")
    assert [d.actual for d in found.differences] == [ctx["rsp"], 0x7000]
    assert "the user's GS base was active, too" in found.cause
    (alone,) = findings(*left, entry(KERNEL | {"gs_base": 0x7000}), access())
    assert (alone.code, alone.field) == ("CW501", "gs_base")
    assert "outside swapgs" in alone.cause


def test_exception_on_a_user_s_stack_that_takes_no_frame() -> None:
    """It is not writable, or not there: the double fault, which has a stack of its own, shows it."""
    ctx = context()
    double = {"how": How.EXCEPTION, "vector": 8, "flags": Flag.IST, "frame": 0xFFFFFFFF80340000}
    (found,) = findings(entry(ctx, How.SYSCALL), swap(), entry(KERNEL | {"rsp": ctx["rsp"]}, **double))
    assert (found.code, found.field) == ("CW501", "rsp")
    assert "could not be pushed there" in found.cause
    assert findings(entry(ctx, How.SYSCALL), swap(), entry(KERNEL, **double)) == []


def test_exception_at_the_first_instruction_of_a_system_call() -> None:
    """Its handler has not had the time to swap: nothing is missing there."""
    ctx = context()
    first = KERNEL | {"rip": KERNEL_RIP + 0x600, "rsp": ctx["rsp"], "gs_base": 0x7000, "kernel_gs_base": KERNEL_BASE}
    calls = entry(ctx, How.SYSCALL), swap(), swap(), exit_(ctx, How.SYSRET), entry(ctx, How.SYSCALL)
    fault = entry(first, How.EXCEPTION, vector=6, frame=ctx["rsp"] - 40)
    (found,) = findings(*calls, fault, entry(first | {"rsp": ctx["rsp"] - 0x80}, How.EXCEPTION))
    assert (found.code, found.field) == ("CW501", "rsp,gs_base")


def test_nested_nmi() -> None:
    nmi = entry(KERNEL, How.NMI, flags=Flag.IST, frame=0xFFFFFFFF80400000)
    inner = context(7, user=False)
    again = entry(inner, How.NMI, flags=Flag.IST, frame=0xFFFFFFFF80400000)
    inside = entry(context()), swap()
    assert codes(*inside, nmi, exit_(KERNEL), nmi, exit_(KERNEL)) == []
    assert codes(*inside, nmi, again) == ["CW502"]


def test_nested_nmi_whose_frame_comes_over_one_that_was_copied() -> None:
    frame, inner = 0xFFFFFFFF80400000, context(7, user=False)
    nmi, again = (entry(ctx, How.NMI, flags=Flag.IST, frame=frame) for ctx in (KERNEL, inner))
    copied, in_place = exit_(KERNEL, frame=frame - 0x38), exit_(KERNEL, frame=frame)
    inside = entry(context()), swap()
    assert codes(*inside, nmi, copied, nmi, again, exit_(inner, frame=frame), copied, nmi, again) == []
    assert codes(*inside, nmi, in_place, nmi, again) == ["CW502"]
    assert codes(*inside, nmi, exit_(inner, frame=frame - 0x38), nmi, again) == ["CW502"]


def test_ist_reused() -> None:
    frame, inside = 0xFFFFFFFF80400000, (entry(context()), swap())
    first = entry(KERNEL, How.EXCEPTION, vector=1, flags=Flag.IST, frame=frame)
    on_it, elsewhere = context(7, user=False) | {"rsp": frame - 0x80}, context(7, user=False)
    second = entry(on_it, How.EXCEPTION, vector=1, flags=Flag.IST, frame=frame)
    assert codes(*inside, first, second) == ["CW304"]
    assert codes(*inside, first, exit_(KERNEL, frame=frame), second) == []
    away = entry(elsewhere, How.EXCEPTION, vector=1, flags=Flag.IST, frame=frame)
    copied, in_place = exit_(KERNEL, frame=frame - 0x4000), exit_(KERNEL, frame=frame)
    assert codes(*inside, first, copied, first, away) == []
    (found,) = findings(*inside, first, in_place, first, away)
    assert found.code == "CW304"
    assert [(one.field, one.expected, one.actual) for one in found.differences] == [("frame", None, frame)]


def test_bad_kernel_bases() -> None:
    for base in (0, 0x1000, 1 << 60):
        assert codes(entry(context(kernel_gs_base=base))) == ["CW205"]


def test_first_return_to_user_mode_without_a_swap() -> None:
    """No count leads up to it; the next swap shows that the two bases stood the wrong way round."""
    theirs = {"cpu": 1, "gs_base": KERNEL_BASE + 0x100, "kernel_gs_base": 0x620000}
    ctx = context(3) | theirs
    inside = context(4, user=False) | {"cpu": 1, "gs_base": 0x620000, "kernel_gs_base": KERNEL_BASE + 0x100}
    rows = [exit_(ctx), entry(ctx), swap(**theirs), entry(inside)]
    (found,) = findings(*rows)
    assert (found.code, found.event, found.cpu, found.field) == ("CW201", 5, 1, "gs_base")
    assert found.cause.startswith("iret returned to user code with the kernel's GS base 0xffffffff80200100 active")
    for change in ({"gs_base": 0x7000}, {"kernel_gs_base": 0x621000}, {"flags": Flag.NO_BASES}):
        assert [f.code for f in findings(exit_(ctx | change), *rows[1:])] == ["CW205"]


def test_first_return_to_user_mode_with_its_swap() -> None:
    ctx = context(3) | {"cpu": 1, "gs_base": 0x620000, "kernel_gs_base": KERNEL_BASE + 0x100}
    assert codes(exit_(ctx), entry(ctx), swap(cpu=1), swap(cpu=1, pc=KERNEL_RIP + 0x880), exit_(ctx)) == []


def test_base_of_another_cpu() -> None:
    rows = [r for n in range(30) for r in normal(n + 1)]
    for row in (own := [r for n in range(3) for r in normal(n + 1)]):
        row["cpu"] = 1
    assert codes(*rows, *own) == ["CW205"]
    apart = [r for n in range(3) for r in normal(n + 1)]
    for row in apart:
        row["cpu"] = 1
        row["kernel_gs_base"][0] = KERNEL_BASE + 0x1000
    assert codes(*rows, *apart) == []


def test_a_hypervisor_swaps_between_its_guests_bases() -> None:
    """Its handlers do not swap on entry; now and then one leaves its guest with the other base."""
    ctx = context()
    rows = [entry(ctx, how=How.SYSCALL), exit_(ctx, How.SYSRET)] * 70
    bounced = [entry(ctx, how=How.SYSCALL), swap(), exit_(context(3), How.SYSRET)]
    nested = [entry(ctx, how=How.SYSCALL), entry(KERNEL), exit_(KERNEL), exit_(ctx, How.SYSRET)]
    whole = stamp(batch(*rows, *bounced, *nested, *bounced, *nested))
    for cut in (1, 70, len(whole)):
        engine = Engine(codes=["CW201", "CW202", "CW203", "CW205", "CW501"])
        for start in range(0, len(whole), cut):
            engine.feed(whole[start : start + cut])
        assert engine.findings == []
    few = stamp(batch(*rows[:40], *bounced, *nested))
    engine = Engine(codes=["CW201", "CW202"])
    engine.feed(few)
    assert [finding.code for finding in engine.findings] == ["CW201", "CW202"]
