"""What the probe makes of QEMU's log, in real guests: the entries that it sees at the handlers, in every column."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gdbext.events.row import Batch, Kind
from gdbext.qemu import guests
from gdbext.qemu.machine import COUNTED_TIME
from gdbext.qemu.probe import ProbeBuild, build
from gdbext.sources.ring import LOGGED, Log

from .conftest import Watched, built

OWN_TIME = {"seq", "time", "match"}


Start = Callable[..., Watched]


@pytest.fixture
def by_log(probe: ProbeBuild) -> ProbeBuild:
    """A probe that takes the log's word at every entry."""
    if probe.told:
        pytest.skip("this QEMU tells plugins what it delivers")
    return build(probe.qemu, cc="cc -DBY_LOG_ALONE=true")


def begin(watched: Watched) -> None:
    """Start the guest, with its interrupts logged."""
    watched.machine.qmp.hmp(f"log {','.join((*LOGGED, 'int'))}")
    watched.ring.header["log"] = Log.ON
    watched.machine.cont()


def entries(watched: Watched, enough: int) -> Batch:
    """The entries of a guest to its end or until there are `enough`."""
    begin(watched)
    watched.run(lambda: watched.machine.ending() is not None or watched.source.counters["entries"] >= enough)
    if watched.machine.ending() is None:
        watched.source.pause()
    watched.drain()
    rows = watched.rows
    found: Batch = rows[rows["kind"] == Kind.ENTRY][:enough]
    return found


def differing(one: Batch, other: Batch) -> dict[str, object]:
    """The columns in which two runs are not alike, with the first two values that differ. Of the stack the words count
    that every frame has: above them may lie what the firmware left, which goes by the host's clock."""
    found: dict[str, object] = {}
    for name in set(one.dtype.names or ()) - OWN_TIME:
        apart = one[name] != other[name]
        if name == "stack":
            apart = apart[:, :3].any(axis=1)
        elif apart.ndim > 1:
            apart = apart.any(axis=1)
        if apart.any():
            first = int(np.argmax(apart))
            found[name] = first, one[name][first], other[name][first]
    return found


@pytest.mark.guest
@pytest.mark.parametrize("name", ["clean-noswapgs", "ist-reused", "iret-fault-parity", "selector-lost", "triple-fault"])
def test_bundled_guests(watch: Start, by_log: ProbeBuild, name: str) -> None:
    """System calls, interrupts, NMIs, faults with and without error codes; a double fault on a stack of its own."""
    guest = guests.find(name)
    words = [*guest.command(guests.build(guest))[1:], "-icount", COUNTED_TIME]
    seen, heard = (entries(watch(*words, build=one), 250) for one in (None, by_log))
    assert len(seen) == len(heard) > 30
    assert differing(seen, heard) == {}


@pytest.mark.guest
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", ["late", "tables", "moved", "many", "pointer", "smm"])
def test_guests_of_one_kind_each(watch: Start, by_log: ProbeBuild, tmp_path: Path, name: str, bits: int) -> None:
    """See there."""
    if (name, bits) == ("moved", 32):
        pytest.skip("its table is mapped twice")
    words = ["-kernel", str(built(name, tmp_path, bits)), "-device", "isa-debug-exit,iobase=0xf4", "-machine", "pc"]
    seen, heard = (entries(watch(*words, "-icount", COUNTED_TIME, build=one), 1 << 16) for one in (None, by_log))
    assert len(seen) == len(heard) > 0
    assert differing(seen, heard) == {}


@pytest.mark.guest
def test_a_guest_that_is_stopped_again_and_again(watch: Start, probe: ProbeBuild) -> None:
    """A vCPU often stands where a handler is about to begin: that entry is seen once."""
    if probe.told:
        pytest.skip("this QEMU tells plugins what it delivers")
    guest = guests.find("clean-smp-osdev")
    watched = watch(*guest.command(guests.build(guest))[1:])
    begin(watched)

    def done() -> bool:
        watched.source.pause()
        watched.machine.cont()
        return watched.done()

    watched.run(done, 60)
    watched.source.pause()
    watched.drain()
    rows = watched.rows
    for cpu in range(guest.smp):
        own = rows[(rows["cpu"] == cpu) & ((rows["kind"] == Kind.ENTRY) | (rows["kind"] == Kind.EXIT))]
        again = np.ones(len(own) - 1, bool)
        for name in ("kind", "pc", "rip", "rsp", "frame"):
            again &= own[name][1:] == own[name][:-1]
        assert not (again & (own["kind"][1:] == Kind.ENTRY)).any()
    assert watched.source.counters["heard"] == 0


@pytest.mark.guest
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("how", ["", " -DBY_STREAM_ALONE=true"])
def test_user_code_that_the_log_leaves_out(
    watch: Start, probe: ProbeBuild, tmp_path: Path, how: str, bits: int
) -> None:
    """See guest/muted.S: the kernel's own deliveries are in the log, and user code's through a gate just changed."""
    if probe.told:
        pytest.skip("this QEMU tells of what it delivers, and needs no log")
    words = "-kernel", str(built("muted", tmp_path, bits)), "-device", "isa-debug-exit,iobase=0xf4"
    watched = watch(*words, build=build(probe.qemu, cc=f"cc{how}"))
    watched.machine.cont()

    def entries() -> Batch:
        rows = watched.rows
        found: Batch = rows[(rows["kind"] == Kind.ENTRY) & (rows["vector"] == 6)]
        return found

    watched.run(lambda: len(entries()) == 1 and bool(watched.ring.header["log"][0] == Log.ON))
    watched.machine.inject_nmi()
    watched.run(lambda: len(entries()) == 27)
    ring = Path(watched.ring.path)
    written = sum(one.read_bytes().count(b"v=06") for one in ring.parent.glob(f"{ring.name}.log*"))
    watched.machine.inject_nmi()
    watched.run(lambda: watched.machine.ending() is not None)
    handlers = sorted(set(entries()["pc"].tolist()))
    seen = [handlers.index(pc) for pc in entries()["pc"].tolist()]
    assert seen == [0, *(n for n in range(6) for _ in range(4)), 6, 7]
    assert (entries()["cs"] & 3).tolist() == [0] + [3] * 24 + [0, 0]
    assert watched.source.counters["heard"] == 1
    assert 3 <= written < 16


@pytest.mark.guest
@pytest.mark.parametrize("bits", [32, 64])
def test_user_code_that_dies_while_the_log_is_muted(watch: Start, probe: ProbeBuild, tmp_path: Path, bits: int) -> None:
    """See guest/muted.S: it is not said to be no triple fault."""
    watched = watch("-kernel", str(built("muted", tmp_path, bits, "-DDIES")))
    watched.machine.cont()
    watched.run(lambda: Kind.EXIT in watched.rows["kind"] and (probe.told or watched.ring.header["log"][0] == Log.ON))
    watched.machine.inject_nmi()
    watched.run(lambda: watched.machine.ending() is not None)
    ending = watched.machine.ending()
    assert ending is not None
    assert ending.how == "reset"


def test_a_log_that_does_not_fit_is_told_and_begun_anew(compiled: Callable[..., Path], tmp_path: Path) -> None:
    """The last record is cut off where the room ends. It is muted by QEMU's level if that works."""
    done = subprocess.run([compiled("log_lines.c"), tmp_path / "log"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done
    assert done.stdout.splitlines() == [
        "2, last 6",
        "many, left: 0, whole: 0",
        "1, last 13, whole: 1",
        "way: 2, muted: 1, left: 0, level: 0x40010, mark: Triple fault?",
        "way: 2, muted: 0, left: 1, level: 0x40010, mark: ",
        "way: 1, muted: 1, left: 0, level: 0, mark: Triple fault?",
        "way: 1, muted: 0, left: 1, level: 0x40010, mark: ",
    ]
