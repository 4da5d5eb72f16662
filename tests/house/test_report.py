"""Findings and results as a person and as a program read them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from gdbext.report.context import contexts
from gdbext.report.document import QemuFacts, RunReport
from gdbext.report.text import render_finding, render_summary
from gdbext.rules.engine import Counts, Engine
from gdbext.rules.finding import CodeLine, Difference, Finding, Place, Writer
from tests.rules.rows import Kind, batch, context, entry, exit_, stamp


def shown(renderable: object, width: int = 100) -> str:
    """What a terminal of that width shows, without colour and without the padding at line ends."""
    console = Console(width=width, color_system=None, force_terminal=False, markup=False, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


@pytest.fixture
def finding() -> Finding:
    """A lost ZF, found by the engine."""
    engine = Engine()
    rows = stamp(batch(entry(context(rflags=0x246)), exit_(context(rflags=0x202))))
    [found] = [finding for finding in engine.feed(rows) if finding.code == "CW102"]
    return found


def hostile() -> Finding:
    return Finding(
        code="CW101", event=1, cpu=0, vector=32, interrupted=Place(0x1000, "f\x1b[2Jx", 3), pc=0x2000, cause="a\nb\x07",
        look_at="c\x9b", thread="\u202et", slot="s\r", pc_symbol="p\x00",
        writer=Writer(0x3000, "w\x1b]0;t\x07", 6, 1, "t\x1b"),
        differences=(Difference("rax", 1, 2),), table=(("n\x1b", 1, 2, "v\x1b"),),
    )  # fmt: skip


def test_the_picture_of_a_finding(finding: Finding) -> None:
    text = shown(render_finding(finding))
    assert text.splitlines()[0] == "CW102 flags-not-restored  event 2, CPU 0, interrupt 0x20"
    assert re.search(r"^ +interrupted +0x400100, user code$", text, re.MULTILINE)
    assert re.search(r"▶ +rflags +0{13}246 +0{13}202 +PF lost, ZF lost$", text, re.MULTILINE)
    assert re.search(r"^ +rip +0{10}400100 +=$", text, re.MULTILINE)
    assert "rbx" not in text
    assert re.search(r"^ +compared to +event 1, the entry with the same RIP and RSP$", text, re.MULTILINE)
    assert finding.look_at.split()[0] in text


def test_addresses_of_code_are_whole_on_a_narrow_terminal(finding: Finding) -> None:
    finding.guilty_code = (CodeLine(0xFFFFFFFF80103424, "mov rdi, qword ptr [rdi + 0x28]"),)
    assert " ffffffff80103424  mov rdi, qword" in shown(render_finding(finding), width=40)


def test_the_whole_context_on_request(finding: Finding) -> None:
    text = shown(render_finding(finding, full=True))
    for row in contexts(finding)[-1].rows:
        assert row.label in text
    assert "the other" not in text


def test_nothing_is_wider_than_the_terminal(finding: Finding) -> None:
    for width in (60, 80, 100, 140):
        assert max(map(len, shown(render_finding(finding), width).splitlines())) <= width


def test_a_narrow_terminal_shows_the_values_whole(finding: Finding) -> None:
    [lost] = finding.differences
    every = sum(1 << bit for bit in (0, 2, 4, 6, 7, 10, 11)) | 0x202  # all that arithmetic sets, and DF
    finding.differences = (Difference(lost.field, every, 0x202),)
    text = shown(render_finding(finding), 60)
    assert f"▶  rflags  {every:016x}  0000000000000202" in text
    assert re.sub(r"\s+", " ", text).count(" lost") >= 7
    assert "…" not in text


@pytest.mark.parametrize("width", [60, 80, 100])
def test_wide_values_are_broken_between_words(finding: Finding, width: int) -> None:
    finding.differences = (Difference("xmm0", 0x1111222233334444 << 64 | 0x5555666677778888, 0x9999AAAABBBBCCCC << 64),)
    text = shown(render_finding(finding), width)
    assert "…" not in text
    for word in ("1111222233334444", "5555666677778888", "9999aaaabbbbcccc", "0000000000000000"):
        assert re.search(rf"\b{word}\b", text)


def small(kind: int) -> Finding:
    """A finding at an event of which the probe read little, with nothing to tell what was expected."""
    row = batch(exit_(context(user=False)))
    row["kind"], row["how"], row["rflags"] = kind, 0, 0
    place = Place(int(row["rip"][0]), None, 0)
    return Finding("CW401", 1, 0, None, place, 1, "c", "l", differences=(Difference("ss", None, 7),), row=row)


def test_what_was_not_read_is_not_shown_as_zero() -> None:
    found, running = contexts(small(Kind.STORE))
    assert (found.headings, [row.before for row in found.rows]) == (("found", ""), [7])
    assert (running.headings, [row.label for row in running.rows]) == (("running", ""), ["rip", "cs", "rsp"])
    text = shown(render_finding(small(Kind.STORE), full=True))
    assert re.search(r"▶ +ss +0007$", text, re.MULTILINE)
    assert "rax" not in text
    document = RunReport("g", "probe", findings=[small(Kind.STORE)]).document()["findings"][0]
    assert (document["expected"], document["actual"]) == (None, "0x7")


def test_expected_and_found_stand_apart_where_there_is_one_context() -> None:
    finding = small(Kind.EXIT)
    finding.differences = (Difference("rflags", 0x202, 0x3202), Difference("frame", None, 5))
    apart, resumed = contexts(finding)
    assert apart.headings == ("expected", "found")
    assert [(row.before, row.after) for row in apart.rows] == [(0x202, 0x3202), (None, 5)]
    assert resumed.headings == ("resumed", "")
    document = RunReport("g", "probe", findings=[finding]).document()["findings"][0]
    assert (document["expected"], document["actual"]) == ("0x202,", "0x3202,0x5")


def test_registers_have_their_32_bit_names(finding: Finding) -> None:
    finding.bits = 32
    labels = [row.label for row in contexts(finding)[-1].rows]
    assert "eflags" in labels
    assert "edi" in labels
    assert "r8" not in labels
    assert {row.digits for row in contexts(finding)[-1].rows} == {4, 8}


@pytest.mark.parametrize("full", [False, True])
def test_a_hostile_guest_does_not_reach_the_terminal(full: bool) -> None:
    text = shown(render_finding(hostile(), full)) + shown(render_summary(RunReport("g", "probe", findings=[hostile()])))
    assert all(character.isprintable() or character == "\n" for character in text)


def test_the_summary_of_a_clean_run() -> None:
    text = shown(render_summary(RunReport("g", "probe", counts=Counts(5, 5, 1, 0, 4, 0), seconds=1.25)))
    assert text.splitlines()[0] == "nothing found"
    assert "5 entries (1 system calls), 5 exits, 4 resumed identical, 0 lost, 1.2 s, by probe" in text


def test_the_summary_counts_findings(finding: Finding) -> None:
    finding.count = 7
    text = shown(render_summary(RunReport("g", "probe", findings=[finding])))
    assert re.search(r"^CW102 flags-not-restored +rflags +7 times +first at event 2, 0x400100$", text, re.MULTILINE)


def test_an_incomplete_run_is_never_called_clean() -> None:
    text = shown(render_summary(RunReport("g", "recording", incomplete="it is cut")))
    assert "nothing found in the part that could be read" in text
    text = shown(render_summary(RunReport("g", "probe", counts=Counts(5, 5, 1, 0, 4, 0), lost=2)))
    assert text.splitlines()[0] == "nothing found, but 2 events were lost"
    text = shown(render_summary(RunReport("g", "probe")))
    assert text.splitlines()[0] == "nothing found: no interrupt, exception or system call was seen"


CONTRACT = {
    "schema", "guest", "source", "qemu", "events", "seconds", "findings",
}  # fmt: skip
FINDING = {
    "code", "name", "severity", "count", "event", "cpu", "vector", "interrupted", "field", "expected", "actual",
    "match", "thread", "slot", "writer", "cause", "look_at",
}  # fmt: skip


def test_the_document_has_the_keys_of_the_contract(finding: Finding) -> None:
    report = RunReport("g", "probe", QemuFacts("10.0.2", "tcg", 4), lost=3, seconds=1.23456, findings=[finding])
    document = json.loads(report.json())
    assert document.keys() == CONTRACT
    assert document["schema"] == "ctxwatch.report/1"
    assert document["qemu"] == {"version": "10.0.2", "accel": "tcg", "plugin_api": 4}
    assert document["events"].keys() == {
        "entries", "exits", "syscalls", "swapgs", "identical", "unmatched", "lost",
    }  # fmt: skip
    assert document["events"]["lost"] == 3
    assert document["seconds"] == 1.235
    [found] = document["findings"]
    assert found.keys() == FINDING
    assert found["interrupted"] == {"rip": "0x400100", "symbol": None, "cpl": 3}
    assert (found["field"], found["expected"], found["actual"]) == ("rflags", "0x246", "0x202")


def test_the_page_on_scripts_tells_of_every_key_and_of_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scripting.md").read_text("utf-8")
    of_run, of_finding = (re.findall(r"^\| (`.+?) \|", part, re.MULTILINE) for part in page.split("Of a finding:"))
    told = [set(re.findall(r"`(\w+)`", " ".join(cells))) for cells in (of_run, of_finding)]
    assert told == [CONTRACT | {"incomplete"}, FINDING | {"area"}]


def test_several_fields_keep_their_order() -> None:
    found = hostile()
    found.differences = (Difference("rax", 1, 2), Difference("rbx", 3, 4))
    document = RunReport("g", "probe", findings=[found]).document()["findings"][0]
    assert (document["field"], document["expected"], document["actual"]) == ("rax,rbx", "0x1,0x3", "0x2,0x4")
    writer = {"rip": "0x3000", "symbol": "w\x1b]0;t\x07", "event": 6, "cpu": 1, "thread": "t\x1b"}
    assert document["writer"] == writer


def test_a_warning_is_no_error(finding: Finding) -> None:
    finding.severity = "warning"
    assert not RunReport("g", "probe", findings=[finding]).has_errors
    finding.severity = "error"
    assert RunReport("g", "probe", findings=[finding]).has_errors
