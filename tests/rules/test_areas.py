"""Save areas: last writers, foreign writes, shifted contexts, implausible slots."""

from __future__ import annotations

import numpy as np

from gdbext.arch.registers import MSR_FS_BASE
from gdbext.events.row import ROW, SLOT_NAMES, Batch, Flag
from gdbext.profiles.profile import find
from gdbext.rules.engine import Engine
from gdbext.rules.finding import UNKNOWN_SLOT, Finding
from gdbext.rules.policy import Layout, Policy
from tests.rules.rows import KERNEL_RIP, How, Kind, batch, context, entry, exit_, stamp

AREA = 0xFFFFFFFF80500000
NRK = find("nrk").policy()
SEL4 = find("sel4-ia32").policy()


def event(kind: int, **fields: object) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["mode"], row["pc"] = kind, 64, KERNEL_RIP
    for name, value in fields.items():
        row[name] = value
    return row


def area(start: int = AREA, size: int = 704) -> Batch:
    return event(Kind.AREA, addr=start, value=size)


def store(offset: int, value: int, pc: int = KERNEL_RIP, start: int = AREA, **fields: object) -> Batch:
    return event(Kind.STORE, addr=start + offset, value=value, size=8, pc=pc, rsp=0xFFFFFFFF80600000, **fields)


def judge(*rows: Batch, policy: Policy = NRK) -> list[Finding]:
    whole = stamp(batch(*rows))
    results = []
    for feeds in ([whole], [whole[i : i + 1] for i in range(len(whole))]):
        engine = Engine(policy)
        for feed in feeds:
            engine.feed(feed)
        results.append(engine.findings)
    assert [(f.code, f.cause) for f in results[0]] == [(f.code, f.cause) for f in results[1]]
    return results[0]


def test_stale_flags_name_slot_and_last_writer() -> None:
    assert NRK.layout is not None
    slots = NRK.layout.slots
    before, now = context(rflags=0x202), context(rip=0x400180, rflags=0x246)

    def save(ctx: dict[str, int], skip: str = "") -> list[Batch]:
        return [store(at, ctx[name], KERNEL_RIP + at) for name, at in slots.items() if name in ctx and name != skip]

    rows = area(), entry(before, How.SYSCALL), *save(before), exit_(before, How.SYSRET)
    bad = entry(now), *save(now, "rflags"), exit_(now | {"rflags": 0x202})
    flags, stale = judge(*rows, *bad)
    assert (flags.code, flags.slot) == ("CW102", "slot 17")
    assert flags.writer is not None
    assert flags.writer.rip == KERNEL_RIP + 136
    assert flags.writer.event == 3 + [name for name in slots if name in before].index("rflags")
    assert (flags.writer.cpu, flags.writer.thread) == (0, "cr3 0x100000 fs 0x10000")
    assert "Slot 17 was last written by the system call path" in flags.cause
    assert "one interrupt ago; this save never stored it" in flags.cause
    assert (stale.code, stale.slot) == ("CW404", "slot 17")
    assert judge(*rows, entry(now), *save(now), exit_(now)) == []


def test_push_into_an_area_is_foreign() -> None:
    push = event(Kind.STORE, addr=AREA + 696, value=1, size=8, rsp=AREA + 704, pc=KERNEL_RIP + 5)
    (finding,) = judge(area(), push)
    assert finding.code == "CW401"
    assert finding.writer is not None
    assert finding.writer.rip == KERNEL_RIP + 5
    assert judge(area(), store(0, 5)) == []


def test_push_onto_what_no_resume_loads() -> None:
    """A path that returns from its save area calls a function there: onto the error code, below RIP."""
    offsets = {name: 16 + 8 * n for n, name in enumerate(COPIED)} | {"error": 8, "rax": 0}
    learnt = [event(Kind.SLOT, addr=at, value=SLOT_NAMES.index(name), size=8) for name, at in offsets.items()]
    assert judge(area(size=56), *learnt, push(8, 1), policy=Policy()) == []
    assert [f.slot for f in judge(area(size=56), *learnt, push(16, 1), policy=Policy())] == ["slot rip"]
    assert len(judge(area(size=56 + 512), *learnt, push(56 + 500, 1), policy=Policy())) == 1  # FXSAVE's image
    own = Policy(layout=Layout({"rip": 16, "error": 8}, 56))
    assert judge(area(size=56), push(8, 1), policy=own) == []
    assert len(judge(area(size=56), push(32, 1), policy=own)) == 1


def test_writers_of_a_profile() -> None:
    policy = Policy(layout=NRK.layout, writers=((KERNEL_RIP, KERNEL_RIP + 0x100),))
    assert judge(area(), store(0, 5, KERNEL_RIP + 8), policy=policy) == []
    (finding,) = judge(area(), store(0, 5, KERNEL_RIP + 0x200), policy=policy)
    assert finding.code == "CW401"
    assert "not among the profile's writers" in finding.cause


def test_implausible_slots() -> None:
    for offset, value in ((144, 0x12345), (136, 0x244)):
        (finding,) = judge(area(), store(offset, value))
        assert finding.code == "CW403"
    assert judge(area(), store(144, 0x2B), store(136, 0x246), store(128, 0x400000), store(144, 0)) == []


def test_idle_thread_that_pushes_into_its_own_area() -> None:
    """The seL4 report: a prologue's push moves the same-ring frame one word down in the TCB."""
    tcb, pushed = 0xE0142600, 0xE0142630
    idle = context(user=False, rip=0xE01166E1, cs=8, rflags=0x202, rsp=pushed, rbp=0, rdi=0)
    push = event(Kind.STORE, addr=pushed - 4, value=0, size=4, rsp=pushed, pc=0xE01166D0, mode=32)
    frame = [0xE01166E1, 8, 0x202, 0, 0, 0, 0, 0]
    wrong = entry(idle, frame=pushed - 4 - 12, mode=32, stack=[frame])
    found = judge(area(tcb, 64), push, wrong, policy=SEL4)
    assert [f.code for f in found] == ["CW401", "CW402"]
    shifted = found[1]
    assert "1 word down" in shifted.cause
    held = {name: whose for name, _, _, whose in shifted.table}
    assert (held["edi"], held["error"], held["cs"]) == ("ebp", "eip", "eflags")
    right = entry(idle, frame=pushed - 12, mode=32, stack=[frame])
    assert judge(area(tcb, 64), right, policy=SEL4) == []


def test_overlapping_areas_are_bounded() -> None:
    rows = [area(AREA + 8 * n, 16) for n in range(50)]
    assert judge(*rows, store(4, 1)) == []


def test_layout_names_slots() -> None:
    layout = Layout({"rax": 0, "rip": 8}, 16)
    assert [layout.slot_at(n) for n in (0, 7, 8, 16)] == ["rax", "rax", "rip", None]


COPIED = ("rip", "cs", "rflags", "rsp", "ss")
STACKED = Layout({"rbx": 0, "rdx": 8, **{name: 16 + 8 * n for n, name in enumerate(COPIED)}}, 56)
ELSEWHERE = 0xFFFFFFFF80700000


def copied(ctx: dict[str, int], start: int = AREA, **fields: object) -> list[Batch]:
    """The frame of `ctx`, copied from another stack to where a thread's area lies on its own."""
    where = {"rsp": ELSEWHERE - 48, **fields}
    return [event(Kind.STORE, addr=start + STACKED.slots[n], value=ctx[n], size=8, **where) for n in ("rdx", *COPIED)]


def push(offset: int, value: int, start: int = AREA) -> Batch:
    return event(Kind.STORE, addr=start + offset, value=value, size=8, rsp=start + offset + 8)


def test_a_handler_pushes_below_the_frame_that_it_copied_from_its_ist_stack() -> None:
    policy = Policy(layout=STACKED)
    ctx = context()
    came = entry(ctx, frame=ELSEWHERE - 40)
    save = [came, *copied(ctx), push(0, ctx["rbx"])]
    pushes_again = [push(8, 1), push(0, 2)]
    assert judge(area(size=56), *save, *pushes_again, exit_(ctx), policy=policy) == []


def test_a_push_is_foreign_where_no_frame_was_copied() -> None:
    policy = Policy(layout=STACKED)
    ctx, came = context(), entry(context(), frame=ELSEWHERE - 40)
    other = AREA + 0x1000
    for rows in (
        [came, push(0, 1)],
        [came, *copied(ctx, other), push(0, 1)],
        [came, push(0, 1), *copied(ctx)],
        [came, *copied(ctx | {"rip": 0x400999}), push(0, 1)],
        [came, *copied(ctx), exit_(ctx), push(0, 1)],
    ):
        found = judge(area(size=56), area(other, 56), *rows, policy=policy)
        assert [f.code for f in found] == ["CW401"]


def test_a_stack_that_runs_into_the_area_it_has_just_filled_is_foreign() -> None:
    """The area lies below the handler's stack: what overflows comes from above, over what was saved."""
    policy = Policy(layout=STACKED)
    ctx = context()
    save = [entry(ctx, frame=ELSEWHERE - 40), *copied(ctx), store(0, ctx["rbx"])]
    found = judge(area(size=56), *save, push(48, 1), push(0, 2), policy=policy)
    assert [(f.code, f.count) for f in found] == [("CW401", 1), ("CW401", 1)]


def test_two_handlers_at_work_on_two_cpus_do_not_share_a_save() -> None:
    policy = Policy(layout=STACKED)
    ctx = context()
    on = {"cpu": 1}
    rows = [entry(ctx, frame=ELSEWHERE - 40, **on), *copied(ctx, **on)]
    (finding,) = judge(area(size=56), *rows, push(0, 1), policy=policy)
    assert (finding.code, finding.cpu) == ("CW401", 0)


def test_a_lost_base_names_who_wrote_its_msr_last() -> None:
    now = context()
    theirs = {"fs_base": 0x99000}
    wrote = event(Kind.BASE, how=How.WRMSR, addr=MSR_FS_BASE, value=0x99000, pc=KERNEL_RIP + 0x77)
    elsewhere = event(Kind.BASE, how=How.WRMSR, addr=MSR_FS_BASE, value=0x99000, pc=KERNEL_RIP + 0x88, cpu=1)
    (lost,) = judge(entry(now), wrote, elsewhere, exit_(now | theirs))
    assert (lost.code, lost.slot) == ("CW104", "MSR C0000100h")
    assert lost.writer is not None
    assert (lost.writer.rip, lost.writer.event, lost.writer.cpu) == (KERNEL_RIP + 0x77, 2, 0)
    assert "was last written at event 2, by 0xffffffff80001077: nothing loaded the thread's own since" in lost.cause
    (lost,) = judge(entry(now), exit_(now | theirs))
    assert (lost.slot, lost.writer) == (None, None)
    assert lost.cause.endswith("No write of this value to FS_BASE (MSR C0000100h) was seen")


def test_where_no_slot_is_known_the_cause_says_why() -> None:
    now = context()
    (lost,) = judge(entry(now), exit_(now | {"rbx": 5}), policy=Policy())
    assert (lost.code, lost.slot, lost.writer) == ("CW101", None, None)
    assert lost.cause.endswith(UNKNOWN_SLOT)
    narrow = {"mode": 32, "flags": Flag.LINEAR32}
    (lost,) = judge(entry(now, **narrow), exit_(now | {"fs_base": 5}, **narrow), policy=Policy())
    assert lost.cause.endswith("It lies in a descriptor in memory, stores into which are not watched")
