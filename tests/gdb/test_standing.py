"""Steps that QEMU reports as done though the vCPU did not move: every other one, here."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.gdb.conftest import Boot, bug_free, lasting, run_gdb
from tests.gdb.sessions import Typed, step_until_moved
from tests.gdb.standing import StandingStub

pytestmark = [pytest.mark.gdb, pytest.mark.guest]

UP = ("tbreak tick if ticks >= 10", "continue")


@pytest.fixture
def stub(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandingStub]:
    """A guest with windows of every kind, its steps standing still at times."""
    lasting(monkeypatch, 20_000)
    live = boot("clean-osdev")
    assert live.machine.gdb is not None
    with StandingStub(live.machine.gdb, live.kernel) as stub:
        yield stub


def test_such_a_step_looks_like_any_other(stub: StandingStub) -> None:
    with Typed(*stub.connect, *UP) as gdb:
        moved = []
        for _ in range(4):
            before = gdb.type("output/x $rip")
            gdb.type("stepi")
            moved.append(gdb.type("output/x $rip") != before)
        assert moved in ([False, True] * 2, [True, False] * 2)
        for _ in range(2):
            before = gdb.type("output/x $rip")
            step_until_moved(gdb)
            assert gdb.type("output/x $rip") != before


def test_a_skip_from_a_breakpoint_arrives(stub: StandingStub) -> None:
    with Typed(*stub.connect, *UP, "ctx safe override break *(syscall_entry+3)") as gdb:
        for turn in range(4):
            gdb.type("continue")
            assert "Arrived at" in gdb.type("ctx skip")
            assert gdb.type("output $ctx_window($pc)") == '"none"'
            assert stub.stood > turn


def test_steps_stop_at_the_edge_of_a_window(stub: StandingStub) -> None:
    with Typed(*stub.connect, *UP, "python import sys; sys.path.append('.')") as gdb:
        gdb.type("python from tests.gdb.safety_places import *")
        for kind in ("exit (sysret)", "syscall-entry"):
            bug_free(gdb.type(f"python in_front('{kind}')"))
            before = stub.stood
            assert "edge of a window" in gdb.type("stepi 20")
            assert stub.stood > before


def test_a_watch_counts_each_event_once(stub: StandingStub) -> None:
    text = run_gdb(
        *stub.connect, "ctx watch", "tbreak tick if ticks >= 30", "continue", "ctx status", "ctx findings"
    )  # fmt: skip
    bug_free(text)
    assert "No findings." in text
    counted = re.search(r"Events: (\d+) entries.* (\d+) resumed identical", text)
    assert counted
    assert int(counted[1]) - int(counted[2]) <= 10
    assert stub.stood > 60
