"""GDB watches through the probe of the guest it is attached to, and stays a debugger meanwhile."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from gdbext.recording.reader import Recording
from gdbext.recording.replay import Replay
from gdbext.sources.ring_file import RingFile
from tests.gdb.conftest import bug_free, run_gdb, start_gdb
from tests.gdb.probed import Probed

pytestmark = [pytest.mark.gdb, pytest.mark.guest]


def test_a_wrong_context_stops_the_guest_and_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "run.arrow"
    with Probed("nrk-rflags") as live:
        text = run_gdb(
            *live.connect,
            "ctx watch --halt",
            f"ctx record {path}",
            "continue",
            "ctx status",
            "ctx gs 8",
            "print $ctx_parity()",
            "ctx record off",
            "ctx findings",
        )
    bug_free(text)
    assert "Watching through the probe in QEMU" in text
    assert "ctxwatch: CW102 flags-not-restored" in text
    assert "the first instruction of the wrong context" in text or "an interrupt came before" in text
    assert "never stores RFLAGS" in text
    assert re.search(r"last swapgs    event \d+ at 0x[0-9a-f]+ <", text)
    assert re.search(r"event \d+ +CPU 0  user -> kernel  swapgs", text)
    assert f"Recorded to {path}." in text
    with Recording(path) as recording:
        assert recording.flaw is None
        assert recording.header.source == "probe"
        replayed = Replay(recording).run()
        (finding,) = replayed.findings
        assert (finding.code, finding.field) == ("CW102", "rflags")
        assert str(finding.event) in text
        assert recording.end is not None
        assert recording.end.end is not None
        assert len(recording.end.end["findings"]) == 1


def test_a_clean_guest_runs_to_its_end_beside_a_debugger() -> None:
    with Probed("clean-nrk") as live:
        text = run_gdb(
            *live.connect,
            "ctx watch",
            "tbreak tick if ticks >= 50",
            "continue",
            "print ticks",
            "ctx status",
            "ctx findings",
            "watch ticks",
            "continue",
            "delete",
            "ctx watch off",
            "maint info breakpoints",
            "detach",
        )
        bug_free(text)
        live.printed("guest: done")
    assert "$1 = 50" in text
    assert "Old value = 50" in text
    assert "No findings." in text
    assert "No breakpoints or watchpoints." in text
    assert re.search(r"No longer watching; \d+ events were seen, 0 lost\.", text)


def test_entries_are_seen_beside_a_breakpoint_on_the_page_of_the_handlers() -> None:
    with Probed("clean-nrk") as live:
        text = run_gdb(*live.connect, "ctx watch", "tbreak tick if ticks >= 50", "continue", "ctx status")
    bug_free(text)
    counted = re.search(r"Events: (\d+) entries.* (\d+) resumed identical", text)
    assert counted
    assert int(counted[1]) >= 50
    assert int(counted[2]) >= 40


def test_a_guest_without_the_probe_is_watched_by_breakpoints_unless_it_is_asked_for() -> None:
    with Probed("clean-nrk", with_probe=False) as live:
        text = run_gdb(*live.connect, "ctx watch --via probe", "ctx watch", "ctx watch off")
    bug_free(text)
    assert "this guest has no probe: its QEMU was not told to load one; add $(ctxwatch qemu-args)" in text
    assert "watching begins when it loads one" in text


def test_a_ring_that_has_a_reader_is_refused_in_one_line() -> None:
    with Probed("clean-nrk") as live:
        while not live.ring.exists():
            time.sleep(0.02)
        ring = RingFile.attach(live.ring)
        try:
            text = run_gdb(*live.connect, "ctx watch", "ctx watch --via gdbstub", "ctx watch off")
        finally:
            ring.close()
    bug_free(text)
    assert f"has a reader already: process {os.getpid()}; end that one first" in text
    assert "watching begins when it loads one" in text


def test_one_can_watch_again_and_in_mid_run() -> None:
    with Probed("nrk-rflags") as live:
        text = run_gdb(
            *live.connect, "ctx watch", "tbreak tick", "continue", "ctx watch off", "ctx watch --halt", "continue",
            "ctx findings",
        )  # fmt: skip
    bug_free(text)
    assert text.count("Watching through the probe") == 2
    assert "CW102 flags-not-restored (error)" in text


def test_what_was_found_before_is_told_again_and_stops_nothing() -> None:
    with Probed("nrk-rflags") as live:
        text = run_gdb(
            *live.connect, "ctx watch --halt", "continue", "ctx watch off", "ctx watch --halt", "continue"
        )  # fmt: skip
    bug_free(text)
    stops = re.findall(r"the first instruction of the wrong context|an interrupt came before", text)
    said = re.findall(r"^ctxwatch: CW\d+ \S+ at event (\d+),", text, re.MULTILINE)
    assert len(stops) == 2
    assert said[0] == said[1], "judged again from the ring"
    assert int(said[-1]) > int(said[0]), "the second stop is for one that came since"
    assert "the latest events before it too" in text


@pytest.mark.parametrize("halt", ["", " --halt"])
def test_qemu_killed_while_watching_is_one_line(halt: str) -> None:
    with Probed("clean-nrk") as live:
        gdb = start_gdb(*live.connect, f"ctx watch{halt}", "continue", "ctx status", "ctx watch")
        live.printed("guest: start")
        os.kill(live.process.pid, signal.SIGKILL)
        text = gdb.finish()
    bug_free(text)
    assert text.count("ctxwatch: ") == 1
    assert "the connection to the guest is closed; the watch has ended" in text
    assert "Not watching." in text


@pytest.mark.parametrize("halt", ["", " --halt"])
def test_ctrl_c_stops_the_guest_and_loses_nothing(halt: str) -> None:
    with Probed("clean-osdev") as live:
        gdb = start_gdb(*live.connect, f"ctx watch{halt}", *["continue"] * 5, "ctx findings", "ctx watch off", "detach")
        live.printed("guest: start")
        for pause in (0.02, 0.1, 0.2, 0.3, 0.4):
            time.sleep(pause + 0.3)
            gdb.interrupt()
        text = gdb.finish()
        bug_free(text)
        assert text.count("SIGINT") == 5
        assert "No findings." in text
        assert ", 0 lost." in text
        live.printed("guest: done")


def test_detaching_leaves_the_guest_alone() -> None:
    with Probed("clean-nrk") as live:
        text = run_gdb(*live.connect, "ctx watch --halt", "tbreak tick", "continue", "detach", "ctx status")
        bug_free(text)
        assert "the connection to the guest is closed; the watch has ended" in text
        live.printed("guest: done")


def test_a_triple_fault_is_told() -> None:
    with Probed("triple-fault") as live:
        gdb = start_gdb(*live.connect, "ctx watch", "continue", "ctx findings")
        time.sleep(5)
        gdb.interrupt()
        text = gdb.finish()
    bug_free(text)
    assert "CW901 machine-died" in text
    assert "the last events" in text
