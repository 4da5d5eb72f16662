"""The picture of a finding: the steps from save to resume and the code at both ends, live and replayed alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from gdbext.cli.view import TerminalView
from gdbext.events.row import SLOT_NAMES, Batch, Flag
from gdbext.recording.reader import Recording
from gdbext.recording.replay import Replay
from gdbext.recording.writer import Recorder
from gdbext.report.htmlfinding import article
from gdbext.report.text import render_finding
from gdbext.report.words import duration, elapsed
from gdbext.rules.engine import Engine
from gdbext.rules.finding import Finding
from gdbext.rules.policy import Layout, Policy
from tests.recording.sessions import header
from tests.rules.rows import KERNEL_RIP, How, Kind, batch, context, entry, exit_, stamp

AREA = 0xFFFFFFFF80700000
LAYOUT = Layout({name: 8 * place for place, name in enumerate(SLOT_NAMES[:18])}, 18 * 8)
EXIT_PC = KERNEL_RIP + 0x904
CODE = bytes.fromhex("0f01f8 50 488b07 90 48cf 90 90 90")
"""swapgs; push rax; mov rax, [rdi]; nop; iretq; nops: the iretq at 8."""


class Guest:
    """Kernel code around the exit, user code everywhere else, a name for the exit's function."""

    def read(self, address: int, length: int) -> bytes:
        page = bytearray(b"\x90" * 4096)
        offset = (EXIT_PC & 0xFFF) - CODE.index(b"\x48\xcf")
        page[offset : offset + len(CODE)] = CODE
        if address & ~0xFFF == EXIT_PC & ~0xFFF:
            return bytes(page[address & 0xFFF :][:length])
        return b"\xcc" * length

    def symbol(self, address: int) -> str | None:
        start = EXIT_PC - CODE.index(b"\x48\xcf")
        return f"restore\x1b[2J+{address - start:#x}" if start <= address < start + len(CODE) else None


def other(kind: int, **changes: object) -> Batch:
    row = exit_(context(9, user=False))
    row["kind"], row["how"], row["pc"] = kind, 0, KERNEL_RIP + 0x700
    for name, value in changes.items():
        row[name] = value
    return row


def session() -> Batch:
    """A context is saved into an area but for its RFLAGS, another runs, and it comes back with old flags."""
    mine = context(1, rflags=0x246)
    names = [name for name in SLOT_NAMES[:18] if name != "rflags"]
    rows = [other(Kind.AREA, addr=AREA, value=LAYOUT.size)]
    rows.append(other(Kind.STORE, addr=AREA + LAYOUT.slots["rflags"], value=0x202, size=8))
    rows += [entry(mine, pc=KERNEL_RIP + 0x520), other(Kind.SWAPGS)]
    rows += [other(Kind.STORE, addr=AREA + LAYOUT.slots[name], value=mine[name], size=8) for name in names]
    rows += [exit_(context(2)), entry(context(2)), exit_(mine | {"rflags": 0x202}, pc=EXIT_PC)]
    whole = stamp(batch(*rows))
    whole["time"] = whole["seq"] * 1000
    return whole


def judge(rows: Batch, *sizes: int) -> Finding:
    engine = Engine(Policy(layout=LAYOUT), guest=Guest())
    start = 0
    for size in (*sizes, len(rows)):
        engine.feed(rows[start : start + size])
        start += size
    return next(finding for finding in engine.findings if finding.code == "CW102")


@pytest.mark.parametrize("sizes", [(), (1, 1, 1), (5, 10)])
def test_the_steps_from_save_to_resume(sizes: tuple[int, ...]) -> None:
    rows = session()
    finding = judge(rows, *sizes)
    said = [(step.event, step.time, step.what) for step in finding.steps]
    last = len(rows)
    assert said == [
        (2, -1000, "last write of slot 17 (not on this save)"),
        (3, 0, "interrupted by interrupt 0x20"),
        (4, 1000, "swapgs"),
        (last - 3, (last - 6) * 1000, f"17 words saved at {AREA:#x}, the last"),
        (last - 2, (last - 5) * 1000, "the CPU turns to another context"),
        (last, (last - 3) * 1000, "iret resumes it"),
    ]
    assert [step.pc for step in finding.steps] == rows["pc"][[step.event - 1 for step in finding.steps]].tolist()


def test_the_guilty_code_is_decoded_from_the_start_of_its_function() -> None:
    finding = judge(session())
    start = EXIT_PC - 8
    assert [(line.address - start, line.text) for line in finding.guilty_code][:5] == [
        (0, "swapgs"),
        (3, "push rax"),
        (4, "mov rax, qword ptr [rdi]"),
        (7, "nop"),
        (8, "iretq"),
    ]


def test_user_code_is_shown_only_while_its_cpu_stands() -> None:
    rows = session()
    assert judge(rows).interrupted_code == ()
    rows["flags"][-1] |= Flag.WAITING
    assert judge(rows).interrupted_code[-1].text == "int3"
    rows["cpu"] = 1
    assert judge(rows).interrupted_code == ()


def test_code_that_cannot_be_read_is_not_shown() -> None:
    engine = Engine()
    engine.feed(session())
    assert all(not finding.guilty_code and not finding.interrupted_code for finding in engine.findings)


def test_a_replay_draws_the_same(tmp_path: Path) -> None:
    about = header(policy=Policy(layout=LAYOUT))
    with Recorder(tmp_path / "r", about, Guest(), print) as recorder:
        live = Engine(about.policy, guest=recorder.guest)
        live.feed(session())
        recorder.write(session())
        recorder.close({})
    with Recording(tmp_path / "r") as recording:
        again = Replay(recording).run()
    pictures = [[drawn(finding) for finding in engine.findings] for engine in (live, again)]
    assert pictures[0] == pictures[1]
    [picture] = [text for text in pictures[0] if text.startswith("CW102")]
    assert re.search(r"▶  ffffffff80001904  iretq *$", picture, re.MULTILINE)
    assert "\x1b" not in picture


def test_a_switch_is_no_interrupt() -> None:
    """A context that its thread left of its own accord was not interrupted by anything, whatever its columns hold."""
    stack = [KERNEL_RIP + 0x800, 0, 0, 0, 0, 0, 0, 0]
    out, back = (other(kind, stack=stack, pc=EXIT_PC, rsp=AREA) for kind in (Kind.SWITCH_OUT, Kind.SWITCH_IN))
    out["pc"], back["rbx"] = KERNEL_RIP + 0x700, 5
    engine = Engine(guest=Guest())
    engine.feed(stamp(batch(out, back)))
    (finding,) = engine.findings
    assert finding.code == "CW108"
    for said in (drawn(finding), re.sub(r"<[^>]*>", " ", article(1, finding))):
        assert "interrupted" not in said, said
        for words in ("switched away", "switches away", "comes back", "where this thread switched away"):
            assert words in said, said
        assert "handler" not in said


class Moved:
    """A 32-bit kernel of nops whose code segment, selector 8, begins at 1 MB; other code everywhere else. Its IDT lies
    at linear 0x5000, and all gates lead to 0x1000."""

    def read(self, address: int, length: int) -> bytes:
        if address >> 12 == 5:
            return bytes.fromhex("00100800008e0000")[:length]
        return (b"\x90" if address >> 20 == 1 else b"\xcc") * length

    def symbol(self, address: int) -> str | None:
        return None


@pytest.mark.parametrize(("cs", "text"), [(8, "nop"), (0x10, None)])
def test_code_is_read_where_its_segment_begins(cs: int, text: str | None) -> None:
    mine = context(1, user=False, rip=0x2000, rsp=0x10_8000, cs=cs) | {"rbx": 5}
    rows = [
        other(Kind.IDT, addr=0x5000, value=0x7FF, mode=32),
        entry(mine, pc=0x10_1000, frame=0x10_7FF4, mode=32),
        exit_(mine | {"rbx": 6}, pc=0x10_1080, frame=0x10_7FF4, mode=32, size=4),
    ]
    engine = Engine(guest=Moved())
    engine.feed(stamp(batch(*rows)))
    (finding,) = engine.findings
    assert {line.text for line in finding.interrupted_code} == ({text} if text else set())
    assert any(line.address == 0x2000 for line in finding.interrupted_code) == (text is not None)


def drawn(finding: Finding) -> str:
    console = Console(width=110, color_system=None, markup=False, highlight=False)
    with console.capture() as capture:
        console.print(render_finding(finding))
    return capture.get()


def test_times() -> None:
    assert [duration(ns) for ns in (0, 999, 1000, 1_500_000, 2_000_000_000)] == [
        "0 ns", "999 ns", "1.000 µs", "1.500 ms", "2.000 s",
    ]  # fmt: skip
    assert (elapsed(-1500), elapsed(0), elapsed(None)) == ("-1.500 µs", "+0 ns", "")


def test_a_warning_is_called_one_without_colour() -> None:
    for how, word in ((How.EXCEPTION, " (warning)  event"), (How.INTERRUPT, "register-not-restored  event")):
        engine = Engine()
        engine.feed(
            batch(entry(context(), how, vector=1 if how == How.EXCEPTION else 32), exit_(context() | {"rbx": 5}))
        )
        (finding,) = engine.findings
        console = Console(width=100, no_color=True)
        with console.capture() as capture:
            console.print(render_finding(finding))
        assert word in capture.get().splitlines()[0]


def test_what_is_learnt_of_a_finding_after_it_was_shown_is_told_in_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    finding = judge(session(), 100)
    with TerminalView() as view:
        view.finding(finding)
        finding.cause += ". At event 99, when it came again: Slot 3 was last written\x1b"
    later = capsys.readouterr().out.rpartition("CW102")[2]
    assert "since then   At event 99, when it came again: Slot 3 was last written\\x1b" in later
    assert "comes back" not in later
    with TerminalView() as view:
        view.finding(finding)
    assert "since then" not in capsys.readouterr().out
