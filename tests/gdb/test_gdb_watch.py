"""Watching real guests from inside GDB, and GDB staying a debugger meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from gdbext.qemu.machine import COUNTED_TIME
from tests.gdb.conftest import Boot, bug_free, run_gdb, start_gdb

pytestmark = [pytest.mark.gdb, pytest.mark.guest]


@pytest.mark.parametrize("symbols", [True, False])
def test_the_lost_rflags_are_caught_at_the_exit(boot: Boot, symbols: bool) -> None:
    live = boot("nrk-rflags")
    kernel = live.kernel if symbols else live.stripped
    text = run_gdb(
        f"file {kernel}", f"target remote {live.machine.gdb}", "ctx watch --halt", "continue", "x/i $pc", "ctx findings"
    )
    bug_free(text)
    assert "ctxwatch: CW102 flags-not-restored" in text
    assert re.search(r"^=> .*iretq", text, re.MULTILINE)
    assert ("restore_context" in text) == symbols
    assert "never stores RFLAGS" in text


@pytest.mark.slow
def test_a_clean_guest_with_two_cpus_is_silent(boot: Boot) -> None:
    live = boot("clean-smp-osdev")
    text = run_gdb(
        *live.connect,
        "ctx watch",
        "tbreak tick if ticks >= 700",
        "continue",
        "ctx status",
        "ctx findings",
        "ctx watch off",
        timeout=120,
    )
    bug_free(text)
    assert "No findings." in text
    counted = re.search(r"Events: (\d+) entries.* (\d+) resumed identical", text)
    assert counted
    assert int(counted[1]) >= 700
    assert int(counted[2]) >= 680


def test_nothing_is_left_after_watch_off(boot: Boot) -> None:
    live = boot("clean-nrk")
    text = run_gdb(
        *live.connect,
        "ctx watch",
        "tbreak tick if ticks >= 5",
        "continue",
        "ctx watch off",
        "maint info breakpoints",
        "detach",
    )
    bug_free(text)
    assert "No breakpoints or watchpoints." in text
    live.wait_for("guest: done")


def test_detaching_removes_everything(boot: Boot) -> None:
    live = boot("clean-nrk")
    text = run_gdb(*live.connect, "ctx watch", "tbreak tick", "continue", "detach", "ctx status")
    bug_free(text)
    assert "the connection to the guest is closed" in text
    assert text.endswith("Findings: 0.\n")
    live.wait_for("guest: done")


def test_one_gdb_can_watch_again_after_reconnecting(boot: Boot) -> None:
    live = boot("clean-nrk")
    again = f"target remote {live.machine.gdb}"
    text = run_gdb(
        *live.connect, "ctx watch", "tbreak tick", "continue", "detach", again, "ctx watch", "tbreak tick", "continue",
        "ctx status",
    )  # fmt: skip
    bug_free(text)
    # The second time the guest runs already: tables and entry come from its memory.
    assert re.search(r"Watching at \d+ addresses; continue", text)
    assert "syscall entry" in text.rpartition("continue")[2]
    assert text.count("tick (") >= 2


def test_users_breakpoints_conditions_and_watchpoints_work(boot: Boot) -> None:
    live = boot("clean-osdev")
    text = run_gdb(
        *live.connect,
        "ctx watch",
        "break tick if ticks == 20",
        "continue",
        "print ticks",
        "delete",
        "watch ticks",
        "continue",
        "print ticks",
        "delete",
        "ctx safe override break *interrupt_entry",
        "continue",
        "info breakpoints",
        "stepi",
        "ctx findings",
    )
    bug_free(text)
    assert "$1 = 20" in text
    assert "Old value = 20" in text
    assert "Breakpoint 3" in text
    assert "breakpoint already hit 1 time" in text
    assert text.endswith("No findings.\n\n") or "No findings." in text


def test_a_condition_may_ask_for_window_and_parity(boot: Boot) -> None:
    live = boot("clean-nrk")
    text = run_gdb(
        *live.connect,
        "ctx watch",
        "tbreak tick if ticks >= 10",
        "continue",
        "print $ctx_parity()",
        "print $ctx_window(&syscall_entry)",
        "print $ctx_window($pc)",
    )
    bug_free(text)
    assert '$1 = "kernel"' in text
    assert '$2 = "syscall-entry"' in text
    assert '$3 = "none"' in text


def test_watching_begins_in_a_running_guest_without_an_image(boot: Boot) -> None:
    live = boot("nrk-rflags", "-icount", COUNTED_TIME, running=True)  # else each stop of GDB's brings the next tick
    live.wait_for("guest: start")
    time.sleep(0.1)
    live.machine.stop()
    text = run_gdb(f"target remote {live.machine.gdb}", "ctx watch --halt", "continue", "ctx status")
    bug_free(text)
    assert "CW102" in text
    assert re.search(r"syscall entry 0xffffffff8\w+$", text, re.MULTILINE)


def test_a_guest_without_table_or_image_is_refused(boot: Boot) -> None:
    live = boot("clean-nrk")
    text = run_gdb(f"target remote {live.machine.gdb}", "ctx watch")
    assert "has not loaded an interrupt table yet" in text
    bug_free(text)


def test_a_triple_fault_is_told_with_the_last_events(boot: Boot) -> None:
    live = boot("triple-fault")
    text = run_gdb(*live.connect, "ctx watch", "continue", "ctx findings")
    bug_free(text)
    assert "CW901 machine-died" in text
    assert "the last events" in text


def test_findings_are_written_as_json(boot: Boot, tmp_path: Path) -> None:
    live = boot("nrk-rflags", "-icount", COUNTED_TIME)
    path = tmp_path / "findings.json"
    run_gdb(*live.connect, "ctx watch --halt", "continue", f"ctx findings --json {path}")
    (finding,) = json.loads(path.read_text("utf-8"))
    assert (finding["code"], finding["field"]) == ("CW102", "rflags")


@pytest.mark.parametrize("round_", range(3))
def test_ctrl_c_stops_the_guest_and_loses_nothing(boot: Boot, round_: int) -> None:
    live = boot("clean-osdev")
    gdb = start_gdb(*live.connect, "ctx watch --halt", *["continue"] * 5, "ctx findings", "ctx watch off", "detach")
    live.wait_for("guest: start")
    for _ in range(5):
        time.sleep(0.3 + round_ / 7)
        gdb.interrupt()
    text = gdb.finish()
    bug_free(text)
    assert text.count("SIGINT") + text.count("ctxwatch: stopped before") == 5
    assert "No findings." in text
    live.wait_for("guest: done")


def test_qemu_killed_while_watching_is_one_line(boot: Boot) -> None:
    live = boot("clean-nrk")
    gdb = start_gdb(*live.connect, "ctx watch", "continue", "ctx status", "ctx watch")
    live.wait_for("guest: start")
    os.kill(live.machine.pid, signal.SIGKILL)
    text = gdb.finish()
    bug_free(text)
    assert text.count("ctxwatch: ") == 1
    assert "the connection to the guest is closed" in text
    assert "Not watching." in text
    assert "no guest" in text


def test_sourcing_again_while_watching_changes_nothing(boot: Boot) -> None:
    live = boot("nrk-rflags", "-icount", COUNTED_TIME)
    from tests.gdb.conftest import EXTENSION

    text = run_gdb(*live.connect, "ctx watch --halt", f"source {EXTENSION}", "continue", "ctx watch")
    bug_free(text)
    assert "CW102" in text
    assert "already watching; end it with ctx watch off first" in text


def test_a_stop_costs_less_than_ten_milliseconds(boot: Boot) -> None:
    live = boot("clean-nrk")
    sample = (
        "python import time; from gdbext.gdb.register import registered; "
        "print('sample', time.monotonic(), registered[0].watch.stops)"
    )
    stretches = [c for ticks in range(50, 350, 50) for c in (f"tbreak tick if ticks >= {ticks}", "continue", sample)]
    text = run_gdb(*live.connect, "ctx watch", *stretches, timeout=120)
    bug_free(text)
    samples = [(float(when), int(stops)) for when, stops in re.findall(r"sample ([\d.]+) (\d+)", text)]
    costs = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in itertools.pairwise(samples)]
    # Other work on this machine only makes it slower.
    assert min(costs) < 0.010
