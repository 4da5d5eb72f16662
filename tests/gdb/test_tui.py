"""The TUI window: a real GDB in a real terminal, through tmux."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdbext.qemu import guests
from gdbext.qemu.machine import Machine
from tests.gdb import transcript
from tests.gdb.conftest import EXTENSION
from tests.repl.tmux import Tmux

pytestmark = [
    pytest.mark.gdb,
    pytest.mark.guest,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux; run scripts/bootstrap"),
]

REFRESH = "CTXWATCH_REFRESH_DOCS"
PAGE = transcript.DOCS / "gdb.md"
BEGIN = f"<!-- the window of layout ctx: made by {REFRESH}=1 python -m pytest tests/gdb/test_tui.py -->\n```\n"
END = "```\n<!-- end of the window -->\n"
COLUMNS, ROWS = 100, 40


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tmux]:
    """GDB attached to a guest that has not started, the extension loaded."""
    monkeypatch.setenv("TERM", "xterm-256color")
    guest = guests.find("nrk-rflags")
    kernel = guests.build(guest)
    gdb = ("gdb", "-nx", "-q", "-iex", "set debuginfod enabled off", str(kernel), "-ex", f"source {EXTENSION}")
    with Machine(guest.command(kernel), gdbstub=True) as machine:
        words = (*gdb, "-ex", f"target remote {machine.gdb}")
        with Tmux(program=words, home=tmp_path, columns=COLUMNS, rows=ROWS) as terminal:
            terminal.until("0x000000000000fff0 in ?? ()")
            yield terminal


def pane(screen: str) -> list[str]:
    """The lines of the window ``ctx`` between its neighbours."""
    lines = screen.splitlines()
    state = next(n for n, line in enumerate(lines) if re.match(r"│ ?(stopped|running|no guest)", line))
    end = next(n for n in range(state, len(lines)) if lines[n].startswith("└"))
    return [line.strip("│").rstrip() for line in lines[state:end]]


def shape(lines: list[str]) -> list[str]:
    """What the lines are, without what differs from run to run."""
    return [transcript.generic(line)[:20].rstrip() for line in lines if line.strip()]


def test_the_window_shows_state_windows_and_findings(terminal: Tmux) -> None:
    terminal.line("layout ctx")
    terminal.until("stopped  CPU 0  CPL 0  GS unknown", "not watching: ctx watch begins")
    terminal.line("ctx watch --halt")
    terminal.until("watching begins when it loads one", "watching: 0 entries")
    terminal.line("continue")
    terminal.until("GS kernel", "windows near 0x", "findings: 1", "CW102 flags-not-restored", seconds=60)
    screen = terminal.text()
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    there, after = rest.split(END)
    if os.environ.get(REFRESH):
        made = "\n".join(line.rstrip() for line in screen.rstrip().splitlines())
        PAGE.write_text(f"{before}{BEGIN}{made}\n{END}{after}", "utf-8")
        return
    shown = pane(screen)
    assert shape(shown) == shape(pane(there)), f"{REFRESH}=1 renews docs/gdb.md\n{screen}"
    assert all(len(line) <= COLUMNS for line in there.splitlines())
    terminal.line("layout ctx-src")
    terminal.until("entry_nrk.S", "findings: 1")
    terminal.line("tui disable")
    terminal.line("print $ctx_parity()")
    terminal.until('= "kernel"')
