"""CW302 and who wrote: the stores into a frame are followed once one was found overwritten."""

from __future__ import annotations

import numpy as np
import pytest

from gdbext.events.row import ROW, Batch, empty
from gdbext.rules.engine import Engine
from gdbext.rules.finding import Finding
from gdbext.rules.stores import KEPT
from tests.code.conftest import Assemble, Snippet, assemble
from tests.rules.rows import Flag, How, Kind, batch, context, entry, exit_, stamp

__all__ = ["assemble"]

FRAME, OTHER = 0xFFFFFFFF80300000, 0xFFFFFFFF80310000
RSP_WORD = 24
CULPRIT = 0xFFFFFFFF80005555


class Guest:
    """A guest of a few instructions, and one name."""

    def __init__(self, snippet: Snippet) -> None:
        self._snippet = snippet

    def read(self, address: int, length: int) -> bytes:
        offset = address - self._snippet.base
        if not 0 <= offset < len(self._snippet.data):
            raise OSError("unmapped")
        return self._snippet.data[offset : offset + length]

    def symbol(self, address: int) -> str | None:
        return "stamp_stack+0x7" if address == CULPRIT else None


@pytest.fixture
def handler(assemble: Assemble) -> Snippet:
    return assemble("entry: pushq %rax; popq %rax; leave: iretq")


def stores(frame: int, value: int) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["mode"], row["addr"], row["value"], row["size"] = Kind.STORE, 64, frame + RSP_WORD, value, 8
    row["pc"], row["rsp"], row["frame"] = CULPRIT, 0xFFFFFFFF80600000, frame
    return row


def overwritten(handler: Snippet, thread: int, frame: int, *between: Batch, rsp: int = 0x10) -> tuple[Batch, ...]:
    ctx = context(thread)
    came = entry(ctx, pc=handler["entry"], frame=frame)
    return came, *between, exit_(ctx | {"rsp": rsp}, pc=handler["leave"], frame=frame)


def judged(handler: Snippet, *rows: Batch) -> tuple[Finding, Engine]:
    engine = Engine(guest=Guest(handler))
    engine.feed(stamp(batch(*rows)))
    (finding,) = engine.findings
    return finding, engine


def test_frame_popped_in_place(handler: Snippet) -> None:
    finding, engine = judged(handler, *overwritten(handler, 1, FRAME))
    assert (finding.code, finding.field, finding.slot, finding.writer) == ("CW302", "rsp", "slot rsp", None)
    assert engine.wanted == {FRAME: FRAME + 40}
    assert "Who wrote it last was not seen" in finding.cause
    assert "--stores all" in finding.look_at


def test_the_store_is_named(handler: Snippet) -> None:
    finding, _ = judged(handler, *overwritten(handler, 1, FRAME, stores(FRAME, 0x10)))
    assert finding.writer is not None
    assert finding.writer.symbol == "stamp_stack+0x7"
    assert finding.slot == "slot rsp"
    assert "the store of 0x10 at stamp_stack+0x7" in finding.cause


def test_what_the_cpu_has_pushed_is_not_stale(handler: Snippet) -> None:
    """Its word came back as it was at an earlier entry, but this one stored it anew."""
    ctx = context(1)
    before = ctx | {"rsp": ctx["rsp"] + 8, "rip": ctx["rip"] + 0x40, "rbx": 7}
    earlier = entry(before, pc=handler["entry"], frame=FRAME), exit_(before, pc=handler["leave"], frame=FRAME)
    finding, _ = judged(handler, *earlier, *overwritten(handler, 1, FRAME, rsp=before["rsp"]))
    assert (finding.code, finding.field) == ("CW302", "rsp")


@pytest.mark.parametrize("value", [0x11, 0])
def test_another_store_is_not(handler: Snippet, value: int) -> None:
    finding, _ = judged(handler, *overwritten(handler, 1, FRAME, stores(FRAME, value)))
    assert finding.writer is None


def test_who_is_seen_later_is_named_in_the_first_finding(handler: Snippet) -> None:
    first = overwritten(handler, 1, FRAME)
    then = overwritten(handler, 1, FRAME, stores(FRAME, 0x20), rsp=0x20)
    finding, _ = judged(handler, *first, *then)
    assert (finding.event, finding.count) == (2, 2)
    assert finding.writer is not None
    assert "At event 5, when it came again: " in finding.cause


def test_the_frames_of_other_threads_are_followed_too(handler: Snippet) -> None:
    other = context(2)
    regular = entry(other, pc=handler["entry"], frame=OTHER), exit_(other, pc=handler["leave"], frame=OTHER)
    _, engine = judged(handler, *regular, *overwritten(handler, 1, FRAME))
    assert engine.wanted == {FRAME: FRAME + 40, OTHER: OTHER + 40}


def test_a_whole_context_that_is_lost_is_no_overwritten_frame(handler: Snippet) -> None:
    ctx = context(1)
    came = entry(ctx, pc=handler["entry"], frame=FRAME)
    engine = Engine(guest=Guest(handler))
    engine.feed(stamp(batch(came, exit_(ctx | {"rsp": 0x10, "rbx": 5}, pc=handler["leave"], frame=FRAME))))
    assert "CW302" not in [finding.code for finding in engine.findings]


def test_lost_flags_come_first_until_a_stray_store_is_seen(handler: Snippet) -> None:
    ctx = context(1)
    came = entry(ctx, pc=handler["entry"], frame=FRAME)
    lost = exit_(ctx | {"rflags": 0x202}, pc=handler["leave"], frame=FRAME)
    engine = Engine(guest=Guest(handler))
    engine.feed(stamp(batch(came, lost)))
    assert [finding.code for finding in engine.findings] == ["CW102", "CW302"]


@pytest.fixture
def calling(assemble: Assemble) -> Snippet:
    return assemble("entry: pushq %rax; call work; popq %rax; leave: iretq; work: movl $1, %eax; ret")


def changed(calling: Snippet, thread: int, *between: Batch) -> tuple[Batch, ...]:
    """A handler that keeps RAX on its stack, right below the frame, and finds 5 there."""
    ctx = context(thread)
    came = entry(ctx, pc=calling["entry"], frame=FRAME)
    return came, *between, exit_(ctx | {"rax": 5}, pc=calling["leave"], frame=FRAME)


def below(value: int, **columns: int) -> Batch:
    """A store into the word below the frame."""
    row = stores(FRAME, value)
    row["addr"] = FRAME - 8
    for name, content in columns.items():
        row[name] = content
    return row


def test_a_register_lost_on_the_stack_says_that_nobody_was_seen_and_has_its_slot_watched(calling: Snippet) -> None:
    finding, engine = judged(calling, *changed(calling, 1))
    assert (finding.code, finding.field, finding.slot, finding.writer) == ("CW101", "rax", "slot rax", None)
    assert "Who wrote it last was not seen" in finding.cause
    assert "--stores all" in finding.look_at
    assert engine.wanted == {FRAME - 8: FRAME}


@pytest.mark.parametrize("late", [False, True], ids=["seen at once", "told late"])
def test_who_wrote_it_is_named_when_it_comes_again(calling: Snippet, late: bool) -> None:
    """A store told late carries the number of the last event before it, here that of the second entry."""
    store = below(5, cpu=1, match=3 if late else 0, frame=FRAME if late else 0)
    rows = stamp(batch(*changed(calling, 1), *changed(calling, 1, store)))
    engine = Engine(guest=Guest(calling))
    for part in (rows[:2], rows[2:]):
        engine.feed(part)
    (finding,) = engine.findings
    assert finding.count == 2
    assert finding.writer is not None
    assert (finding.writer.symbol, finding.writer.cpu) == ("stamp_stack+0x7", 1)
    assert finding.writer.event == (3 if late else 4)
    assert "was written on this save, by stamp_stack+0x7" in finding.cause
    assert "not seen" not in finding.cause
    assert "--stores all" not in finding.look_at


def test_a_store_told_late_is_no_new_store_into_an_area(calling: Snippet) -> None:
    area = np.zeros(1, ROW)
    area["kind"], area["addr"], area["value"] = Kind.AREA, FRAME - 8, 8
    push = below(5, rsp=FRAME)
    engine = Engine(guest=Guest(calling))
    engine.feed(stamp(batch(area, push)))
    assert [finding.code for finding in engine.findings] == ["CW401"]
    late = Engine(guest=Guest(calling))
    late.feed(stamp(batch(area, below(5, rsp=FRAME, match=1))))
    assert late.findings == []


def test_a_switch_that_loses_a_register_is_told_which_of_its_instructions_leave_it(assemble: Assemble) -> None:
    code = assemble(
        "switch: pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp, (%rdi); movq %rsi, %rsp;"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbp; xorl %ebx, %ebx; end: ret"
    )
    left, back = np.zeros(1, ROW), np.zeros(1, ROW)
    for row, kind, pc, rbx in ((left, Kind.SWITCH_OUT, "switch", 7), (back, Kind.SWITCH_IN, "end", 0)):
        row["kind"], row["pc"], row["mode"], row["rsp"], row["rbx"] = kind, code[pc], 64, 0xFFFFFFFF80600000, rbx
        row["stack"][0][0] = code["switch"] + 0x100
    engine = Engine(guest=Guest(code))
    engine.feed(stamp(batch(left, back)))
    (finding,) = engine.findings
    assert (finding.code, finding.field) == ("CW108", "rbx")
    assert "never stores RBX" in finding.cause


def test_a_selector_that_is_stored_and_never_loaded_names_its_slot_and_who_stores_it(assemble: Assemble) -> None:
    code = assemble(
        "entry: pushal; pushl %ds; push: pushl %es; call work; addl $4, %esp; popl %ds; popal; leave: iretl; work: ret",
        bits=32,
    )
    ctx = context(mode=32, flags=Flag.LINEAR32, es=0x23, ds=0x23, cs=0x1B, ss=0x23, rip=0x400100, rsp=0x7F1000)
    came = entry(ctx, pc=code["entry"], frame=0xC0106F00)
    lost = exit_(ctx | {"es": 0x10}, pc=code["leave"], frame=0xC0106F00)
    engine = Engine(guest=Guest(code))
    engine.feed(stamp(batch(came, lost)))
    (finding,) = engine.findings
    assert (finding.code, finding.field, finding.slot) == ("CW103", "es", "slot 0")
    assert finding.writer is not None
    assert (finding.writer.rip, finding.writer.event) == (code["push"], None)
    assert "never loads it" in finding.cause


def test_a_register_kept_where_all_threads_of_a_cpu_keep_it_names_the_place_and_who_stores_there(
    assemble: Assemble,
) -> None:
    code = assemble(
        "entry: swapgs; scratch: movq %rsp, %gs:8; movq %gs:16, %rsp; pushq %rcx; pushq %r11; call work;"
        "popq %r11; popq %rcx; movq %gs:8, %rsp; swapgs; leave: sysretq; work: ret"
    )
    mine, others = context(1, rsp=0x7F1000), context(2, rsp=0x7F2000)
    calls = [entry(ctx, How.SYSCALL, pc=code["entry"]) for ctx in (mine, others)]
    wrong = exit_(mine | {"rsp": others["rsp"]}, How.SYSRET, pc=code["leave"])
    engine = Engine(guest=Guest(code))
    engine.feed(stamp(batch(*calls, wrong)))
    (finding,) = engine.findings
    assert (finding.code, finding.field, finding.slot) == ("CW107", "rsp", "slot gs:[0x8]")
    assert finding.writer is not None
    assert finding.writer.rip == code["scratch"]
    assert "which all threads share" in finding.cause


def with_simd(row: Batch, xmm0: int) -> Batch:
    made = empty(1, simd=True)
    for name in ROW.names or ():
        made[name] = row[name]
    made["flags"] |= Flag.SIMD
    made["simd"]["xmm"][0, 0, 0] = xmm0
    return made


def test_a_handler_that_calculates_in_the_interrupted_code_s_registers_is_named(assemble: Assemble) -> None:
    code = assemble("entry: pushq %rax; call work; popq %rax; leave: iretq; work: nop; guilty: pxor %xmm0, %xmm0; ret")
    ctx = context()
    came = with_simd(entry(ctx, pc=code["entry"], frame=FRAME), 7)
    lost = with_simd(exit_(ctx, pc=code["leave"], frame=FRAME), 0)
    engine = Engine(guest=Guest(code))
    engine.feed(stamp(batch(came, lost)))
    (finding,) = engine.findings
    assert (finding.code, finding.field) == ("CW105", "xmm0")
    assert finding.writer is not None
    assert finding.writer.rip == code["guilty"]
    assert "calculates in xmm0" in finding.cause


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_who_is_named_does_not_hang_on_where_batches_are_cut(handler: Snippet, size: int) -> None:
    """Followed from the first time on, the stores of the second are seen, and more of them than are kept follow."""
    quiet = [row.copy() for _ in range(KEPT + 1) for row in [stores(OTHER, 0)]]
    for row in quiet:
        row["frame"], row["pc"] = 0, CULPRIT + 1
    again = stores(FRAME, 0x10)
    again["frame"] = 0  # told because it was asked for
    later = [stores(FRAME, 0x99) for _ in range(KEPT + 1)]
    rows = stamp(batch(*overwritten(handler, 1, FRAME), *quiet, *overwritten(handler, 2, FRAME, again), *later, *quiet))
    engine = Engine(guest=Guest(handler))
    for start in range(0, len(rows), size):
        engine.feed(rows[start : start + size])
    (finding,) = engine.findings
    assert finding.count == 2
    assert finding.writer is not None
    assert finding.writer.rip == CULPRIT
