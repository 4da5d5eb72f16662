"""Walking a recording: by the cursor, and at the prompt."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest

from gdbext.arch.registers import GPR64
from gdbext.errors import CtxwatchError, NotCapable, RecordingError, UsageError
from gdbext.events.row import SLOT_NAMES, Batch, Flag, Kind, empty
from gdbext.recording import reader, writer
from gdbext.recording.walk import Walk
from gdbext.repl.recorded import Recorded
from gdbext.repl.session import Session
from gdbext.rules.parity import KERNEL, UNKNOWN, USER
from tests.recording.sessions import CODE, busy, record
from tests.repl.fakes import FakeGdbs, MemoryScreen
from tests.rules.rows import KERNEL_RIP


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "ROWS", 64)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Batches of 64 events, of which two at a time are judged together."""
    monkeypatch.setattr(reader, "TOGETHER", 128)
    record(tmp_path / "run.arrow", busy(100))
    return tmp_path / "run.arrow"


def test_it_begins_at_the_first_event(path: Path) -> None:
    rows = busy(100)
    walk = Walk(path)
    assert (walk.first, walk.last, walk.event) == (1, len(rows), 1)
    assert walk.row.tobytes() == rows[:1].tobytes()
    assert walk.flaw is None


def test_goto_reaches_every_event_in_any_order(path: Path) -> None:
    rows = busy(100)
    walk = Walk(path)
    for event in (1, len(rows), 65, 64, 300, 2, 129):
        walk.goto(event)
        assert walk.row.tobytes() == rows[event - 1 : event].tobytes()


def test_goto_names_the_nearest(tmp_path: Path) -> None:
    rows = busy(20)
    rows["seq"] *= 10
    record(tmp_path / "r", rows)
    walk = Walk(tmp_path / "r")
    with pytest.raises(UsageError, match=r"no event 44 .*the nearest is 40"):
        walk.goto(44)
    with pytest.raises(UsageError, match=f"they are 10 to {10 * len(rows)}"):
        walk.goto(0)
    assert walk.event == 10


def test_steps_cross_batches_and_end_at_the_ends(path: Path) -> None:
    walk = Walk(path)
    with pytest.raises(UsageError, match="this is the first event"):
        walk.step(-1)
    for _ in range(walk.last - 1):
        walk.step(1)
    assert walk.event == walk.last
    with pytest.raises(UsageError, match="this is the last event"):
        walk.step(1)
    walk.step(-200)
    assert walk.event == walk.last - 200
    with pytest.raises(UsageError, match="not so many events after"):
        walk.step(500)
    assert walk.event == walk.last - 200


def test_findings_are_those_of_the_live_run_and_walked_in_order(path: Path, tmp_path: Path) -> None:
    live = record(tmp_path / "again", busy(100))
    walk = Walk(path)
    assert [found.code for found in walk.findings] == [found["code"] for found in live]
    events = sorted({found.event for found in walk.findings})
    seen = []
    for event in events:
        seen.append(walk.next_finding())
        assert walk.event == seen[-1].event == event
    with pytest.raises(UsageError, match="there is no finding after"):
        walk.next_finding()
    back = walk.prev_finding()
    assert back.event < seen[-1].event


def test_the_moment_counts_what_was_before(path: Path) -> None:
    rows = busy(100)
    walk = Walk(path)
    for event in (1, 2, 64, 65, 250):
        walk.goto(event)
        before = rows[: event - 1]
        entries, exits, calls, swaps = walk.moment().counts
        assert entries == (before["kind"] == Kind.ENTRY).sum()
        assert exits == (before["kind"] == Kind.EXIT).sum()
        assert swaps == (before["kind"] == Kind.SWAPGS).sum()
        assert calls <= entries
        assert walk.moment().seconds == pytest.approx((int(rows["time"][event - 1]) - int(rows["time"][0])) / 1e9)
    walk.goto(walk.last)
    assert walk.moment().findings == walk.findings


def test_parity_is_as_of_the_event(path: Path) -> None:
    rows = busy(100)
    walk = Walk(path)
    assert walk.moment().parity == {0: UNKNOWN}, "the other CPU was not seen yet"
    swaps = [int(row["seq"]) for row in rows[200:260] if row["kind"] == Kind.SWAPGS]
    for first, second in zip(swaps[::2], swaps[1::2], strict=False):
        walk.goto(first)
        cpu = walk.moment().cpu
        assert walk.moment().parity[cpu] == USER, "a swapgs at hand is not done yet"
        walk.goto(second)
        assert walk.moment().parity[cpu] == KERNEL


def test_registers_are_those_of_the_event(path: Path) -> None:
    walk = Walk(path)
    walk.goto(7)
    row = walk.row
    values = {register.name: register.value for register in walk.registers()}
    assert all(values[name] == int(row[name][0]) for name in (*GPR64, "rip", "cr3"))
    assert walk.whose() == "the context that was interrupted"


def test_what_was_not_captured_says_why(tmp_path: Path) -> None:
    rows = busy(5)
    rows["flags"] |= Flag.UNREADABLE | Flag.NO_BASES | Flag.NO_KERNEL_GS
    record(tmp_path / "r", rows)
    registers = {register.name: register for register in Walk(tmp_path / "r").registers()}
    assert (registers["rip"].value, registers["rip"].note) == (None, "the frame could not be read")
    assert (registers["gs_base"].value, registers["kernel_gs_base"].note) == (None, "not captured")
    assert registers["rax"].value is not None


@pytest.mark.parametrize(
    ("kind", "held"),
    [
        (Kind.SWAPGS, {"rsp", "rip", "cs", "ss", "fs_base", "gs_base", "kernel_gs_base"}),
        (Kind.GS_ACCESS, {*GPR64, "rip", "cs", "ss", "fs_base", "gs_base", "kernel_gs_base", "cr3"}),
        (Kind.SWITCH_OUT, {*GPR64, "rip", "cs", "cr3"}),
        (Kind.STORE, {"rsp", "rip", "cs", "cr3"}),
        (Kind.AREA, set()),
    ],
)
def test_a_small_event_has_no_registers_but_those_it_carries(tmp_path: Path, kind: int, held: set[str]) -> None:
    rows = busy(5)
    rows["kind"], rows["how"] = kind, 0
    rows["rflags"] = 0
    if kind in (Kind.STORE, Kind.SWITCH_OUT):
        rows["flags"] |= Flag.NO_BASES | Flag.NO_KERNEL_GS
    record(tmp_path / "r", rows)
    registers = Walk(tmp_path / "r").registers()
    assert {register.name for register in registers if register.value is not None} == held
    assert {register.note for register in registers if register.value is None} == {"not captured"}


def test_an_event_made_with_every_live_register_has_them(tmp_path: Path) -> None:
    rows = busy(5)
    rows["kind"], rows["how"] = Kind.STORE, 0
    record(tmp_path / "r", rows)
    assert all(register.value is not None for register in Walk(tmp_path / "r").registers())


def test_ia32_registers_have_their_names(tmp_path: Path) -> None:
    rows = busy(5)
    rows["mode"] = 32
    record(tmp_path / "r", rows)
    names = [register.name for register in Walk(tmp_path / "r").registers()]
    assert names[:10] == ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip", "eflags"]


def saves() -> Batch:
    """An area of two words that are stored, and stored again."""
    rows = empty(7)
    rows["seq"] = np.arange(1, 8)
    rows["time"], rows["mode"], rows["size"] = rows["seq"], 64, 8
    kinds = [Kind.CR3, Kind.AREA, Kind.SLOT, Kind.STORE, Kind.STORE, Kind.STORE, Kind.CR3]
    for row, kind in zip(rows, kinds, strict=True):
        row["kind"] = kind
    rows["addr"] = [0, 0x5000, 8, 0x5000, 0x5008, 0x5008, 0]
    rows["value"] = [0, 16, SLOT_NAMES.index("rbx"), 0x11, 0x22, 0x33, 0]
    rows["pc"] = 0x1000 + rows["seq"]
    return rows


def test_save_areas_are_as_they_were(tmp_path: Path) -> None:
    record(tmp_path / "r", saves(), size=3)
    walk = Walk(tmp_path / "r")
    assert walk.areas() == []
    walk.goto(5)
    (area,) = walk.areas()
    assert (area.start, area.size) == (0x5000, 16)
    assert [(slot.offset, slot.name, slot.value) for slot in area.slots] == [(0, "", 0x11), (8, "rbx", None)]
    walk.goto(6)
    assert walk.areas()[0].slots[1].value == 0x22
    walk.goto(7)
    slot = walk.areas()[0].slots[1]
    assert (slot.value, slot.event, slot.pc) == (0x33, 6, 0x1006)


def test_memory_is_what_was_captured(path: Path) -> None:
    walk = Walk(path)
    page = KERNEL_RIP & ~0xFFF
    assert walk.memory(page, 4) == CODE[:4]
    with pytest.raises(NotCapable, match=r"0x400000 is not in the recording"):
        walk.memory(0x400000, 8)


def test_an_incomplete_recording_is_walked_as_far_as_it_goes(path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    walk = Walk(cut)
    assert walk.flaw
    assert 1 < walk.last < len(busy(100))
    walk.goto(walk.last)
    assert walk.event == walk.last


@pytest.mark.parametrize("what", ["directory", "empty", "text", "missing", "no events"])
def test_what_is_no_recording_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "r"
    if what == "directory":
        path.mkdir()
    elif what == "no events":
        record(path, empty(0))
    elif what != "missing":
        path.write_text("" if what == "empty" else "hello, world " * 100)
    with pytest.raises(RecordingError) as error:
        Walk(path)
    assert str(path) in str(error.value)


# At the prompt


def typed(path: Path, *lines: str) -> MemoryScreen:
    """What the REPL shows for `lines` at the recording; no GDB is started for any of them."""
    screen = MemoryScreen()
    gdbs = FakeGdbs()

    async def run() -> None:
        session = Session(screen, None, gdbs.start)
        for line in (f"open {path}", *lines):
            await session.run(line)
        await session.close()

    asyncio.run(run())
    assert gdbs.all == []
    return screen


def test_open_tells_what_there_is(path: Path) -> None:
    screen = typed(path)
    assert screen.of("note") == [
        f"fake, events 1 to 466, {len(Walk(path).findings)} findings; next-finding, goto EVENT"
    ]
    assert screen.of("text")[0].startswith("event 1, CPU 0: entry by syscall at")


def test_walking_at_the_prompt(path: Path) -> None:
    screen = typed(path, "next-finding", "prev", "next-event 5", "goto 100", "prev-finding", "status", "ctx gs")
    assert screen.of("error") == []
    assert Walk(path).findings[0].code in screen.of("ansi")[0]
    shown = "\n".join(screen.of("text"))
    assert "event 100, CPU" in shown
    assert "fake by probe, events 1 to 466" in shown
    assert "* CPU" in shown


def test_gs_of_one_cpu(path: Path) -> None:
    screen = typed(path, "goto 400", "ctx gs --cpu 0 2", "ctx gs --cpu 99", "ctx gs 2 3")
    shown = [line for line in screen.of("text") if re.search(r"CPU \d", line)][2:]
    assert [line.split("CPU ")[1][:1] for line in shown] == ["0"] * 3
    assert screen.of("error") == [
        "ctx gs: there is no CPU 99: there are 0, 1",
        "gs: 2 3 is not a number of transitions",
    ]


def test_an_empty_line_moves_on(path: Path) -> None:
    screen = typed(path, "next-event 3", "", "", "x/2i $pc", "", "status", "")
    assert [line.split(",")[0] for line in screen.of("text")[:4]] == ["event 1", "event 4", "event 7", "event 10"]
    assert len(screen.of("gdb")) == 2, "a recording's listing does not go on"
    assert screen.of("error") == []


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("inf", "info registers"),
        ("info reg", "registers"),
        ("info registers r1", "r15"),
        ("p $rf", "$rflags"),
        ("ctx st", "status"),
        ("x/3i ker", "kernel<b>\\x1b[31m"),
    ],
)
def test_what_a_recording_can_answer_is_completed(path: Path, line: str, word: str) -> None:
    words = Recorded(path, MemoryScreen()).words(line)
    assert word in words
    assert word not in Recorded(path, MemoryScreen()).words("finish ")


def test_gdbs_spelling_is_understood(path: Path) -> None:
    page = KERNEL_RIP & ~0xFFF
    screen = typed(
        path, "info registers rax rip", "p $rsp + 8", f"x/2i {page:#x}", f"x/2gx {page:#x}", f"x/4xb {page:#x}"
    )
    assert screen.of("error") == []
    assert [line.split() for line in screen.of("text")[1:3]] == [["rax", "0x0"], ["rip", "0x400000"]]
    assert screen.of("text")[3] == hex(Walk(path).registers()[4].value or 0 + 8) or screen.of("text")[3].startswith(
        "0x"
    )
    lines = screen.of("gdb")
    assert lines[0].endswith(":\tswapgs\n")
    assert lines[1].endswith(":\tpush rax\n")
    assert lines[2].endswith(
        f":\t0x{int.from_bytes(CODE[:8], 'little'):016x}\t0x{int.from_bytes(CODE[8:16], 'little'):016x}\n"
    )
    assert lines[3].endswith(":\t0x0f\t0x01\t0xf8\t0x50\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("continue", "continue: a recording cannot run"),
        ("stepi 3", "stepi: a recording cannot run"),
        ("ctx skip", "ctx skip: a recording cannot run"),
        ("break foo", "break: a recording cannot stop anywhere"),
        ("watch *1", "watch: a recording cannot stop anywhere"),
        ("ctx watch", "ctx watch: not in a recording"),
        ("monitor quit", "monitor: not in a recording"),
        ("info threads", "info threads: not in a recording"),
        ("x/4gx 0x400000", "memory at 0x400000 is not in the recording"),
        ("x/4i 0x400000", "memory at 0x400000 is not in the recording"),
        ("x/4q 1", "this format is not known here"),
        ("x", "an address is missing"),
        ("p $nonsense", "the register $nonsense is not in the recording"),
        ("p nonsense", "the name nonsense is not in the recording"),
        ("p 1 2", "is not understood here"),
        ("ctx tcb", "no save area is known at this event"),
        ("info registers xyz", "no register xyz here"),
        ("goto 10000", "they are 1 to 466"),
        ("goto x", "goto: EVENT: 'x' is no whole number; help goto tells more"),
        ("next-event 100000", "there are not so many events after this one"),
    ],
)
def test_what_a_recording_cannot_do_is_refused_by_name(path: Path, line: str, said: str) -> None:
    (error,) = typed(path, line).of("error")
    assert said in error
    assert "\n" not in error


def test_save_areas_at_the_prompt(tmp_path: Path) -> None:
    record(tmp_path / "r", saves())
    shown = "\n".join(typed(tmp_path / "r", "goto 6", "areas").of("text"))
    assert "save area 0x5000, 16 bytes" in shown
    assert "+0x8    rbx       0x0000000000000022  event 5, 0x1005" in shown


def test_an_incomplete_recording_says_so(path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    screen = typed(cut, "status")
    assert "the recording is incomplete: it is cut off" in screen.of("error")[0]
    assert "incomplete: it is cut off" in screen.of("error")[1]
    assert "recording (incomplete)" in Recorded(cut, screen).toolbar()


def test_another_file_that_cannot_be_opened_leaves_the_one_at_hand(path: Path, tmp_path: Path) -> None:
    screen = typed(path, f"open {tmp_path}", "status")
    assert "it is a directory" in screen.of("error")[0]
    assert "events 1 to 466" in "\n".join(screen.of("text"))


def test_refusals_are_ctxwatch_errors(path: Path) -> None:
    recorded = Recorded(path, MemoryScreen())
    with pytest.raises(CtxwatchError):
        asyncio.run(recorded.run("ctx"))
