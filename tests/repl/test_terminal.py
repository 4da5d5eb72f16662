"""End to end on a real terminal: tmux, the command, a real GDB, a real guest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdbext.qemu import guests
from gdbext.qemu.machine import COUNTED_TIME, Machine
from tests.recording.sessions import replayed
from tests.repl.processes import children_of, wait_until_gone
from tests.repl.tmux import Tmux

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux; run scripts/bootstrap"),
]


@pytest.fixture(autouse=True)
def _built(tmp_path: Path) -> None:
    guests.build(guests.find("nrk-rflags"))


@pytest.fixture
def machine() -> Iterator[Machine]:
    guest = guests.find("nrk-rflags")
    with Machine(guest.command(guests.build(guest)), gdbstub=True) as machine:
        yield machine


def test_boot_watch_find_and_quit(tmp_path: Path) -> None:
    with Tmux("repl", "nrk-rflags", home=tmp_path) as repl:
        repl.until("nrk-rflags stands before its first instruction", "stopped │ CPU 0 │ CPL 0")
        repl.type("ctx wat")
        repl.key("Tab")
        repl.until("(ctx) ctx watch")
        repl.type("--ha")
        repl.key("Tab")
        repl.until("(ctx) ctx watch --halt")
        repl.key("Enter")
        repl.until("watching begins when it loads one")
        repl.line("continue")
        repl.until("│ guest: start nrk", "CW102 flags-not-restored", "stopped │", "1 finding")
        assert "events" in repl.toolbar
        repl.line("findings")
        repl.until("interrupted       resumed", "▶  rflags", "cause", "look at")
        repl.type("x/2i $p")
        repl.key("Tab")
        repl.type("c")
        repl.key("Enter")
        repl.until("=> 0x")
        repl.key("C-d")
        repl.until("is stopped and ends with the REPL. Leave? (y or n)")
        repl.line("y")
        assert repl.ended() == 0
    history = (tmp_path / "state" / "ctxwatch" / "history").read_text()
    assert "+ctx watch --halt" in history
    with Tmux("repl", home=tmp_path) as again:
        again.until("(ctx)", "idle")
        again.key("Up", "Up", "Up")
        again.until("(ctx) continue")


def test_attach_run_and_interrupt_with_a_prompt_in_between(machine: Machine, tmp_path: Path) -> None:
    kernel = guests.build(guests.find("nrk-rflags"))
    with Tmux("repl", "--connect", str(machine.gdb), "--kernel", str(kernel), home=tmp_path) as repl:
        repl.until("is stopped;", "stopped │")
        repl.line("ctx watch")
        repl.line("continue")
        repl.until("(ctx running)", "running │", "CW102", "events/s", seconds=200)  # its clock does not wait for GDB
        repl.type("explain CW10")
        repl.until("(ctx running) explain CW10")
        repl.type("2")
        repl.key("Enter")
        repl.until("CW102", "RFLAGS")
        repl.line("info registers")
        repl.until("the guest is running; Ctrl-C stops it")
        repl.key("C-c")
        repl.until("stopped │", "CPL")
        with Tmux("repl", "--connect", str(machine.gdb), home=tmp_path / "other") as other:
            assert other.ended() == 2
            said = f"ctxwatch: {machine.gdb} has a client already: QEMU serves one debugger at a time"
            assert said in other.text(scrolled=True)
        repl.line("quit")
        assert repl.ended() == 0
    assert machine.qmp.execute("query-status")["running"] is True
    assert machine.ending() is None


def test_a_step_is_refused_and_skipped_and_a_finding_is_recorded(tmp_path: Path) -> None:
    guest = guests.find("nrk-rflags")
    kernel = guests.build(guest)
    path = tmp_path / "live.arrow"
    with (
        Machine([*guest.command(kernel), "-icount", COUNTED_TIME], gdbstub=True) as machine,
        Tmux("repl", "--connect", str(machine.gdb), "--kernel", str(kernel), home=tmp_path, rows=60) as repl,
    ):
        repl.until("is stopped;", "stopped │")
        repl.line("tbreak tick")
        repl.line("continue")
        repl.until("Temporary breakpoint 1, tick", "stopped │")
        repl.line("ctx safe override tbreak *(syscall_entry+3)")
        repl.until("Temporary breakpoint 2 at")
        repl.line("continue")
        repl.until("(ctx window)", "in window: syscall-entry", "kernel code, user RSP")
        repl.line("stepi")
        repl.until("stepi refused", "ctx skip runs to the", "a double or")
        assert "in window: syscall-entry" in repl.toolbar
        repl.line("ctx skip")
        repl.until("Arrived at", "past the syscall-entry window")
        repl.line("ctx watch --halt")
        repl.until("Watching at")
        assert "in window" not in repl.toolbar
        repl.line(f"ctx record {path}")
        repl.until("Recording to")
        repl.line("continue")
        repl.until("CW102 flags-not-restored", "ctxwatch: stopped before", seconds=100)
        repl.line("findings 1")
        repl.until("▶  rflags", "look at")
        assert "│ 0 findings" not in repl.toolbar
        repl.line("quit")
        assert repl.ended() == 0
        assert machine.qmp.execute("query-status")["running"] is True
    found, flaw, _ = replayed(path)
    assert (found[0]["code"], flaw) == ("CW102", None)


def test_a_recorded_run_is_walked(tmp_path: Path) -> None:
    path = tmp_path / "run.arrow"
    words = ["run", "nrk-rflags", "--record", str(path), "--max-findings", "1"]
    code = "import sys; from gdbext.cli.main import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    with Tmux("repl", str(path), home=tmp_path, rows=70) as repl:  # the finding's picture is seen whole
        repl.until("(ctx event ", "recording │ event 1 of ", " │ 0 of 1 findings │ CPU 0", "│ run.arrow")
        repl.type("next-f")
        repl.key("Tab")
        repl.until("(ctx event 1) next-finding")
        repl.key("Enter")
        repl.until("exit by iret at", "CW102", "look at")
        repl.line("x/2i $pc")
        repl.until("(ctx event", "<restore_context+", "iretq")
        repl.line("info registers rflags")
        repl.until("registers of the context that is about to be resumed")
        repl.line("stepi")
        repl.until("stepi: a recording cannot run")
        repl.line("prev 5")
        repl.line("boot nrk-rflags")
        repl.until("stands before its first instruction", "stopped │")
        repl.line("quit")
        assert repl.ended() == 0


def test_assembly_has_colours(tmp_path: Path) -> None:
    with Tmux("repl", "nrk-rflags", home=tmp_path) as repl:
        repl.until("stopped │")
        repl.line("x/3i $pc")
        repl.until("=> 0xfff0:")
        line = next(line for line in repl.text(colours=True).splitlines() if "=>" in line)
        assert line.count("\x1b[") >= 4


def test_the_prompt_is_there_within_a_second(tmp_path: Path) -> None:
    """Counted in the REPL's own CPU time: QEMU, GDB and whatever else the machine does now are not its business."""
    with Tmux("repl", home=tmp_path) as repl:  # the first start compiles what is imported
        repl.until("(ctx)", "idle")
    with Tmux("repl", "nrk-rflags", home=tmp_path) as repl:
        repl.until("(ctx")
        fields = Path(f"/proc/{repl.pid}/stat").read_text().rsplit(")", 1)[1].split()
    assert (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") < 1.0


def test_a_killed_repl_leaves_nothing_behind(tmp_path: Path) -> None:
    with Tmux("repl", "nrk-rflags", home=tmp_path) as repl:
        repl.until("stopped │")
        repl.line("continue")
        repl.until("(ctx running)")
        children = children_of(repl.pid)
        assert len(children) >= 3, "GDB, QEMU and the watchdog of its directory"
        children.append(repl.pid)
    wait_until_gone(children)
