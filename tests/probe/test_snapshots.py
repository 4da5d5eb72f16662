"""Snapshots: one that is loaded while the guest is watched, one that a QEMU begins with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from gdbext.events.row import Batch, Kind
from gdbext.rules.engine import Engine
from tests.gdb.test_reverse import empty_disk

from .conftest import Watched

pytestmark = pytest.mark.guest

Watch = Callable[..., Watched]


@pytest.fixture
def disk(tmp_path: Path) -> list[str]:
    """The words that give a QEMU room for snapshots."""
    empty_disk(tmp_path / "snapshots")
    return ["-drive", f"file={tmp_path / 'snapshots'},if=none,id=snapshots,format=qcow2"]


def errors(rows: Batch) -> list[str]:
    engine = Engine()
    engine.feed(rows)
    return [finding.code for finding in engine.findings]


def go_on(watched: Watched, rows: int) -> None:
    """Let it do so much more."""
    enough = sum(map(len, watched.parts)) + rows
    watched.run(lambda: sum(map(len, watched.parts)) >= enough)


def test_one_that_is_loaded_in_mid_run(watch: Watch, guest: Callable[[str], Path], disk: list[str]) -> None:
    watched = watch("-kernel", str(guest("clean-smp")), "-smp", "2", *disk)
    watched.machine.cont()
    watched.run(lambda: watched.said("guest: start"))
    for turn in range(3):
        go_on(watched, 400)
        watched.machine.qmp.hmp(f"savevm {turn}", 60)
        go_on(watched, 400)
        watched.machine.qmp.hmp(f"loadvm {turn}", 60)
    watched.run(watched.done, 60)
    assert watched.source.lost == 0
    rows = watched.rows
    assert len(rows[rows["kind"] == Kind.RESTORED]) >= 3
    assert errors(rows) == []


def test_a_stop_is_no_snapshot(watch: Watch, guest: Callable[[str], Path]) -> None:
    watched = watch("-kernel", str(guest("clean-smp")), "-smp", "2")
    watched.machine.cont()
    for _ in range(10):
        go_on(watched, 100)
        watched.machine.stop()
        watched.machine.cont()
    watched.run(watched.done, 60)
    assert not (watched.rows["kind"] == Kind.RESTORED).any()
    assert errors(watched.rows) == []


def test_one_that_qemu_begins_with(watch: Watch, guest: Callable[[str], Path], disk: list[str], tmp_path: Path) -> None:
    """No lidt, no lgdt and no wrmsr of the system call entry is seen; all entries are."""
    words = "-kernel", str(guest("clean-smp")), "-smp", "2", *disk
    before = watch(*words)
    before.machine.cont()
    before.run(lambda: before.said("guest: start"))
    go_on(before, 400)
    before.machine.qmp.hmp("savevm one", 60)
    before.source.close()
    before.machine.close()
    log = tmp_path / "log"
    watched = watch(*words, "-loadvm", "one", "-d", "int", "-D", str(log))
    assert all(map(watched.source.tell_tables, range(2)))
    watched.machine.cont()
    watched.run(watched.done, 60)
    watched.machine.stop()
    watched.drain()
    rows = watched.rows
    assert not (rows["kind"] == Kind.IDT).any()
    entries = rows[rows["kind"] == Kind.ENTRY]
    seen = Counter(entries["vector"][entries["vector"] < 0x100].tolist())
    logged = re.findall(r"^ *\d+: v=(\w+) e=\w+ i=\d cpl=\d IP=", log.read_text(), re.MULTILINE)
    assert seen == Counter(int(vector, 16) for vector in logged)
    assert (entries["vector"] == 0x100).sum() > 10
    assert errors(rows) == []
