"""docs/gdb.md is as the declarations are, and the tutorials' transcripts are what is shown."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from gdbext.recording.walk import Walk
from tests.gdb import transcript
from tests.gdb.conftest import bug_free, run_gdb
from tests.gdb.probed import Probed

pytestmark = pytest.mark.gdb

REFRESH = "CTXWATCH_REFRESH_DOCS"
PAGE = transcript.DOCS / "gdb.md"
BEGIN = f"<!-- commands: made from the declarations by {REFRESH}=1 python -m pytest tests/gdb/test_docs.py -->\n"
END = "<!-- end of commands -->\n"
GDB = "(gdb) "


def test_the_commands_are_those_declared() -> None:
    made = run_gdb(f"source {Path(__file__).with_name('commands_table.py')}")
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    there, after = rest.split(END)
    if os.environ.get(REFRESH):
        PAGE.write_text(before + BEGIN + made + END + after, "utf-8")
        return
    assert there == made, f"docs/gdb.md is stale: {REFRESH}=1 python -m pytest tests/gdb/test_docs.py renews it"


def test_every_command_has_help_with_an_example() -> None:
    names = re.findall(r"`ctx ([a-z]+)", PAGE.read_text("utf-8").partition(BEGIN)[2])
    text = run_gdb(*(f"help ctx {name}" for name in names))
    bug_free(text)
    assert len(names) >= 12
    assert text.count("Usage: ctx ") == text.count("Example:") == len(names)


@pytest.mark.guest
def test_the_tutorials_are_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recording that the first tutorial makes is the one that the other walks."""
    monkeypatch.chdir(tmp_path)
    (live_block,) = transcript.blocks("tutorial-gdb.md", GDB)
    with Probed("nrk-rflags") as live:
        commands = transcript.typed(live_block, GDB)
        assert commands[0].startswith("target remote")
        shown = run_gdb(f"file {live.kernel}", f"target remote {live.gdb}", *commands[2:])
    bug_free(shown)
    assert not transcript.missing(live_block[1:], GDB, shown), shown

    walk = Walk(tmp_path / "boot.arrow")
    (finding,) = walk.findings
    walk.close()
    (walked_block,) = transcript.blocks("tutorial-replay.md", GDB)
    commands = transcript.typed(walked_block, GDB)
    commands = [f"ctx replay goto {finding.event - 3}" if "goto" in command else command for command in commands]
    shown = run_gdb(*commands[1:])
    bug_free(shown)
    assert not transcript.missing(walked_block, GDB, shown), shown


@pytest.mark.guest
def test_the_session_in_the_readme_is_what_is_shown() -> None:
    block = transcript.indented(transcript.README, GDB)
    assert "-icount shift=3" in transcript.README.read_text("utf-8")
    with Probed("nrk-rflags", "-icount", "shift=3", with_probe=False) as live:
        commands = transcript.typed(block, GDB)
        assert commands[:2] == ["target remote 127.0.0.1:1234", "source gdbext/ctxwatch.py"]
        shown = run_gdb(f"file {live.kernel}", f"target remote {live.gdb}", *commands[2:])
    bug_free(shown)
    assert len(block) > 10
    assert not transcript.missing(block, GDB, shown), shown
