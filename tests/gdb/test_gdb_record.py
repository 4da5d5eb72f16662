"""``ctx record`` and ``ctx gs`` beside breakpoints, and what they refuse."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from gdbext.qemu.machine import COUNTED_TIME
from gdbext.recording.reader import Recording
from gdbext.recording.replay import Replay
from tests.gdb.conftest import Boot, bug_free, run_gdb, start_gdb

pytestmark = [pytest.mark.gdb, pytest.mark.guest]


def test_a_watch_with_breakpoints_is_recorded_and_found_again(boot: Boot, tmp_path: Path) -> None:
    live = boot("nrk-rflags", "-icount", COUNTED_TIME)
    path = tmp_path / "run.arrow"
    text = run_gdb(
        *live.connect,
        "ctx profile nrk",
        "ctx watch --halt",
        f"ctx record {path}",
        "ctx record other.arrow",
        "continue",
        "ctx status",
        "ctx watch off",
    )
    bug_free(text)
    assert f"already recording to {path}; end it with ctx record off first" in text
    assert f"Recording to {path}.\n" in text
    with Recording(path) as recording:
        assert (recording.flaw, recording.header.profile) == (None, "nrk")
        (finding,) = Replay(recording).run().findings
    assert (finding.code, finding.field) == ("CW102", "rflags")
    assert f"at event {finding.event}," in text


def test_a_recording_that_begins_in_mid_run_holds_what_is_found_from_there(boot: Boot, tmp_path: Path) -> None:
    live = boot("nrk-rflags", "-icount", COUNTED_TIME)
    path = tmp_path / "late.arrow"
    text = run_gdb(
        *live.connect, "ctx watch", "tbreak tick if ticks >= 20", "continue", f"ctx record {path}",
        "tbreak tick if ticks >= 60", "continue", "ctx record off", "ctx watch off",
    )  # fmt: skip
    bug_free(text)
    with Recording(path) as recording:
        replayed = Replay(recording).run()
        assert recording.end is not None
        assert recording.end.end is not None
        live_codes = [(one["code"], one["event"], one["count"]) for one in recording.end.end["findings"]]
    assert [(one.code, one.event, one.count) for one in replayed.findings] == live_codes
    assert replayed.counts.entries >= 40


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("off", "nothing is recorded; ctx record FILE begins"),
        ("/", "it is not a regular file"),
        ("/dev/full", "it is not a regular file"),
        ("/nowhere/run.arrow", "cannot record to /nowhere/run.arrow: No such file or directory"),
    ],
)
def test_what_cannot_be_recorded_is_refused_in_one_line(boot: Boot, word: str, said: str) -> None:
    live = boot("clean-nrk")
    text = run_gdb(*live.connect, f"ctx record {word}", "ctx watch", f"ctx record {word}", "ctx status")
    bug_free(text)
    assert "nothing is watched; use ctx watch first" in text
    assert said in text
    assert "Recording" not in text


def test_findings_are_not_written_over_the_recording(boot: Boot, tmp_path: Path) -> None:
    live = boot("clean-nrk")
    names = [tmp_path / name for name in ("run.arrow", "run.arrow.incomplete", "findings.json")]
    commands = (f"ctx findings --json {name}" for name in names)
    text = run_gdb(*live.connect, "ctx watch", f"ctx record {names[0]}", *commands, "ctx record off")
    bug_free(text)
    for name in names[:2]:
        assert f"cannot write {name}: it is the recording itself; choose another name" in text
    assert f"0 findings are in {names[2]}." in text
    with Recording(names[0]) as recording:
        assert list(recording.batches()) == []
        assert recording.flaw is None


def test_qemu_killed_while_recording_leaves_a_whole_recording(boot: Boot, tmp_path: Path) -> None:
    live = boot("clean-nrk")
    path = tmp_path / "run.arrow"
    gdb = start_gdb(*live.connect, "ctx watch", f"ctx record {path}", "continue")
    live.wait_for("guest: start")
    time.sleep(1.5)
    os.kill(live.machine.pid, signal.SIGKILL)
    text = gdb.finish()
    bug_free(text)
    with Recording(path) as recording:
        assert recording.flaw is None
        assert Replay(recording).run().counts.entries > 0


def test_a_killed_gdb_leaves_what_was_recorded(boot: Boot, tmp_path: Path) -> None:
    live = boot("clean-nrk")
    partial = tmp_path / "run.arrow.incomplete"
    gdb = start_gdb(*live.connect, "ctx watch", f"ctx record {tmp_path / 'run.arrow'}", "continue")
    live.wait_for("guest: start")
    live.until(lambda: partial.exists() and partial.stat().st_size > 20_000, 30, "a recording")
    gdb.process.kill()
    gdb.process.wait()
    with Recording(partial) as recording:
        assert Replay(recording).run().counts.entries > 0
        assert recording.flaw is not None


def test_gs_without_a_watch_shows_the_registers_alone(boot: Boot) -> None:
    live = boot("clean-smp-osdev", running=True)
    live.wait_for("guest: start")
    live.machine.stop()
    text = run_gdb(*live.connect, "thread 2", "ctx gs", "ctx gs 3", "ctx gs --cpu 1", "ctx gs --cpu 99", "thread")
    bug_free(text)
    assert len(re.findall(r"^  CPU 0: GS (user|unknown), CPL [03]$", text, re.MULTILINE)) == 1
    assert len(re.findall(r"^\* CPU 1: GS (user|unknown), CPL [03]$", text, re.MULTILINE)) == 2
    assert text.count("active   base  0x") == 3
    assert "ctx gs: there is no CPU 99: there are 0, 1" in text
    assert "Nothing is watched: no swapgs is counted and no load is seen." in text
    assert "no transitions are known: nothing is watched; use ctx watch first" in text
    assert "Current thread is 2" in text


def test_gs_without_a_guest_is_refused() -> None:
    text = run_gdb("ctx gs", "ctx gs -- -3")
    bug_free(text)
    assert text.count("no guest: GDB is not connected to one; use target remote HOST:PORT") == 1
    assert "-3 is not a number of transitions" in text
