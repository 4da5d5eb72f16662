"""``ctx replay``: a recording is walked in GDB, with neither QEMU nor a guest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gdbext.errors import printable
from gdbext.recording.walk import Walk
from tests.gdb.conftest import bug_free, run_gdb
from tests.recording.sessions import busy, record

pytestmark = pytest.mark.gdb


@pytest.fixture
def path(tmp_path: Path) -> Path:
    record(tmp_path / "run.arrow", busy(100))
    return tmp_path / "run.arrow"


def test_it_is_walked_as_in_the_repl(path: Path) -> None:
    walk = Walk(path)
    finding = walk.next_finding()
    text = run_gdb(
        f"ctx replay {path}",
        "ctx replay next-finding",
        "ctx replay info registers rip",
        "ctx replay print/d $rip",
        "ctx status",
        "ctx gs 2",
        "ctx findings",
        "ctx replay prev 2",
        "ctx replay goto 5",
        "ctx replay",
        "ctx replay off",
        "ctx status",
    )
    bug_free(text)
    assert f"events {walk.first} to {walk.last}" in text
    assert printable(walk.describe()) in text
    assert f"{finding.code} {finding.name}" in text
    assert f"registers of {walk.whose()}" in text
    assert f"\n{int(walk.row['rip'][0])}\n" in text
    assert text.count("event 5, CPU") == 2
    assert f"{path} is closed." in text
    assert text.endswith("Not watching.\n")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("ctx replay continue", "continue: a recording cannot run: its guest ran before"),
        ("ctx replay stepi", "stepi: a recording cannot run"),
        ("ctx replay break tick", "break: a recording cannot stop anywhere"),
        ("ctx replay x/4gx 0x1234", "memory at 0x1234 is not in the recording"),
        ("ctx replay backtrace", "backtrace: not in a recording"),
        ("ctx replay goto", "ctx replay goto: an event is missing"),
        ("ctx replay goto here", "ctx replay goto: 'here' is no number"),
        (f"ctx replay goto {10**20}", f"there is no event {10**20} in this recording; they are 1 to"),
        (f"ctx replay goto -{10**20}", f"there is no event -{10**20} in this recording; they are 1 to"),
        ("ctx replay ''", "event 1, CPU"),
        ("p $ctx_window()", "$ctx_window takes one address"),
        ("ctx replay goto 999999", "there is no event 999999 in this recording"),
        ("ctx replay prev", "this is the first event"),
        ("ctx record more.arrow", "ctx record: not in a recording"),
        ("ctx watch", "a recording is open"),
        ("ctx skip", "ctx skip: a recording cannot run"),
    ],
)
def test_what_a_recording_cannot_do_is_refused_by_name(path: Path, command: str, said: str) -> None:
    text = run_gdb(f"ctx replay {path}", command)
    bug_free(text)
    assert said in text


def test_findings_go_to_a_file_and_never_over_the_recording(path: Path, tmp_path: Path) -> None:
    before, out = path.read_bytes(), tmp_path / "out.json"
    commands = (f"ctx findings --json {name}" for name in (path, out, "-", "/nowhere/out.json"))
    text = run_gdb(f"ctx replay {path}", *commands)
    bug_free(text)
    assert f"cannot write {path}: it is the recording itself" in text
    assert path.read_bytes() == before
    found = json.loads(out.read_text("utf-8"))
    assert [finding["event"] for finding in found] == [finding.event for finding in Walk(path).findings]
    assert f"{len(found)} findings are in {out}." in text
    assert json.dumps(found, indent=2) in text
    assert "cannot write /nowhere/out.json: No such file or directory" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "ctx replay needs a recording"),
        ("off", "no recording is open"),
        ("~nobody-here/run.arrow", "No such file or directory"),
        ("/nowhere/run.arrow", "No such file or directory"),
        ("/", "it is a directory"),
        (str(Path(__file__)), "it is no recording"),
        ("next-finding", "no recording is open"),
    ],
)
def test_what_is_no_recording_is_refused_in_one_line(words: str, said: str) -> None:
    text = run_gdb(f"ctx replay {words}")
    bug_free(text)
    assert said in text
    assert len(text.strip().splitlines()) == 1
