"""The probe in real guests: every event counted against what the guest itself counts, nothing lost, nobody hurt."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gdbext.arch.registers import GPR64
from gdbext.events.row import NOT_READ, Batch, Flag, How, Kind
from gdbext.qemu.probe import ProbeBuild, plugin_args
from gdbext.sources.base import Capability
from gdbext.sources.leftover import LeftoverSource
from gdbext.sources.probe import TrackedVariable
from gdbext.sources.ring import Log

from .conftest import Watched, built

pytestmark = pytest.mark.guest

Watch = Callable[..., Watched]
Kernel = Callable[[str], Path]


def count(watched: Watched, kind: int) -> Counter[str]:
    rows = watched.rows[watched.rows["kind"] == kind]
    return Counter(How.NAMES[how] for how in rows["how"].tolist())


def summary(watched: Watched) -> dict[str, int]:
    """What the guest says of itself: ``guest: ticks 2500 calls 783 …``."""
    line = next(line for line in watched.serial if "guest: ticks" in line)
    return {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", line)}


@pytest.mark.parametrize(("name", "smp"), [("clean-nrk", 1), ("clean-osdev", 1), ("clean-smp", 2), ("clean-nrk", 4)])
def test_a_clean_guest_event_by_event(watch: Watch, guest: Kernel, name: str, smp: int) -> None:
    watched = watch("-kernel", str(guest(name)), "-smp", str(smp))
    watched.machine.cont()
    watched.run(watched.done)
    watched.machine.stop()
    watched.drain()
    rows, said = watched.rows, summary(watched)
    entries, exits = rows[rows["kind"] == Kind.ENTRY], rows[rows["kind"] == Kind.EXIT]
    assert watched.source.lost == 0
    assert (np.diff(rows["seq"].astype(np.int64)) == 1).all()

    kinds = Counter(entries["vector"].tolist())
    assert said["ticks"] <= kinds[0x40] <= said["ticks"] + smp  # other CPUs' last ticks come after the line
    assert kinds[0x100] + kinds[0x80] == said["calls"]
    assert kinds[14] == said["faults"]
    assert (entries["how"][entries["vector"] == 0x80] == How.SOFT).all()
    assert ((entries["flags"] & Flag.ERROR_CODE != 0) == (entries["vector"] == 14)).all()
    assert watched.source.counters["stray"] == 0
    assert not (rows["flags"] & Flag.UNREADABLE).any()

    # Every interrupt of user code is resumed bit for bit; what the probe calls identical is.
    first = {int(row["seq"]): row for row in entries}
    resumed = set()
    for row in exits[(exits["flags"] & Flag.IDENTICAL) != 0]:
        entry = first[int(row["match"])]
        resumed.add(int(row["match"]))
        changed = [n for n in (*GPR64, "rip", "rflags", "cs", "ss") if row[n] != entry[n]]
        may = {"rax", "rcx", "r11"} if entry["how"] == How.SYSCALL else {"rax"} if entry["how"] == How.SOFT else set()
        assert set(changed) <= may, (changed, row["seq"])
    asynchronous = entries[(entries["how"] == How.INTERRUPT)]
    left = [int(row["seq"]) for row in asynchronous if int(row["seq"]) not in resumed]
    assert len(left) <= 32, left  # the threads that are suspended at the end

    user = entries[(entries["cs"] & 3) == 3]
    assert not (user["flags"] & Flag.PARITY_KERNEL).any()
    assert (user["flags"] & Flag.PARITY_KNOWN).all()
    assert not (rows["kind"] == Kind.GS_ACCESS).any()


def test_switches_come_in_pairs(watch: Watch, guest: Kernel) -> None:
    watched = watch("-kernel", str(guest("clean-osdev")))
    watched.machine.cont()
    watched.run(watched.done)
    rows = watched.rows
    out = {int(row["seq"]): row for row in rows[rows["kind"] == Kind.SWITCH_OUT]}
    back = rows[rows["kind"] == Kind.SWITCH_IN]
    assert len(back) > 100
    saved = ("rbx", "rbp", "r12", "r13", "r14", "r15", "rsp")
    for row in back:
        gone = out[int(row["match"])]
        assert [n for n in saved if row[n] != gone[n]] == []


def to_its_end(watch: Watch, kernel: Path, *words: str, **options: bool) -> Watched:
    """Run `kernel` until it ends QEMU."""
    watched = watch("-kernel", str(kernel), "-device", "isa-debug-exit,iobase=0xf4", *words, **options)
    watched.machine.cont()
    watched.run(lambda: watched.machine.ending() is not None)
    watched.drain()
    return watched


def entries_of(watch: Watch, kernel: Path, *words: str, **options: bool) -> Batch:
    """The entries that are seen of `kernel` to its end."""
    rows: Batch = to_its_end(watch, kernel, *words, **options).rows
    entries: Batch = rows[rows["kind"] == Kind.ENTRY]
    return entries


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("options", [(), ("-accel", "tcg,one-insn-per-tb=on")])
def test_handlers_that_are_hard_to_see(watch: Watch, tmp_path: Path, bits: int, options: tuple[str, ...]) -> None:
    """See guest/handlers.S for the steps."""
    watched = to_its_end(watch, built("handlers", tmp_path, bits), *options, every_self=True)
    rows = watched.rows
    entries = rows[rows["kind"] == Kind.ENTRY]
    soft, fault, irq = How.SOFT, How.EXCEPTION, How.INTERRUPT
    expected = [
        (0x40, soft), (0x41, soft), (0x41, soft), (0x41, soft), (0x51, soft), (0x52, soft), (6, fault), (6, soft),
        (13, fault), (13, soft), (0x60, soft), (0x61, soft), (0x63, soft), (0x62, soft), (6, fault),
    ]  # fmt: skip
    seen = list(zip(entries["vector"].tolist(), entries["how"].tolist(), strict=True))
    assert seen[: len(expected)] == expected
    with_error = [n for n, flags in enumerate(entries["flags"].tolist()) if flags & Flag.ERROR_CODE]
    assert with_error == [8]
    assert int(entries["error"][8]) == 0xFFF0

    # The guest counted the deliveries and how often the timer came before the handler's first instruction.
    last = rows[rows["flags"] & Flag.SELF != 0]
    assert len(last) == 1
    rest = seen[len(expected) :]
    assert set(rest) <= {(0x70, soft), (0x20, irq)}
    assert rest.count((0x70, soft)) == int(last["rdi"][0])
    handler = int(entries["pc"][entries["vector"] == 0x70][0])
    timer = entries[entries["vector"] == 0x20]
    assert int((timer["rip"] == handler).sum()) == int(last["rsi"][0]) > 0
    assert (entries["flags"] & Flag.LINEAR32 != 0).all() == (bits == 32)


@pytest.mark.parametrize("bits", [32, 64])
def test_entries_overtaken_before_their_first_instruction(watch: Watch, tmp_path: Path, bits: int) -> None:
    """See guest/calls.S for the steps."""
    watched = to_its_end(watch, built("calls", tmp_path, bits), "-cpu", "qemu64,vendor=GenuineIntel")
    assert watched.source.lost == 0
    entries = watched.rows[watched.rows["kind"] == Kind.ENTRY]
    soft, fault = How.SOFT, How.EXCEPTION
    entered, called = (0x101, How.SYSENTER), (0x100, How.SYSCALL)
    debug, bad, absent = (1, fault), (6, fault), (14, fault)
    wide = bits == 64
    steps = [
        [entered, debug, *((called, debug, debug) if wide else ())],  # sysret gives TF back
        [(0x80, soft), debug],
        [debug],
        [(0x81, soft), entered, bad, *(((0x81, soft), called, bad) if wide else ())],
        [(0x82, soft), called, absent, (0x82, soft), (0x43, soft), absent] if wide else [],
        [(0x83, soft), *[(13, fault)] * 2],
        [(13, fault)] * 3,
    ]
    expected = [entry for step in steps for entry in step]
    seen = list(zip(entries["vector"].tolist(), entries["how"].tolist(), strict=True))
    assert seen[: len(expected)] == expected

    first = {int(row["vector"]): int(row["pc"]) for row in entries}
    nmi = entries["how"] == How.NMI
    before = Counter(entries["rip"][nmi].tolist())
    assert before[first[0x80]] > 0
    calls = [entered, (0x80, soft), *((called,) if wide else ())]
    rest = [entry for entry in seen[len(expected) :] if entry != (2, How.NMI)]
    assert rest == [*calls * 5000, (0x84, soft)]


@pytest.mark.parametrize("bits", [32, 64])
def test_two_tables_in_turn(watch: Watch, tmp_path: Path, bits: int) -> None:
    """See guest/tables.S."""
    entries = entries_of(watch, built("tables", tmp_path, bits))
    assert entries["vector"].tolist() == [3, 6] * 210 + [3] * 210


@pytest.mark.parametrize("bits", [32, 64])
def test_a_gate_that_comes_to_lead_to_code_that_ran_before(watch: Watch, tmp_path: Path, bits: int) -> None:
    """See guest/late.S."""
    entries = entries_of(watch, built("late", tmp_path, bits))
    assert (entries["vector"] == 6).all()
    handlers = sorted(set(entries["pc"].tolist()))
    seen = [handlers.index(pc) for pc in entries["pc"].tolist()]
    delivered = [0] * 4 + [1] * 10 + [2, 0, 1] * 10 + [3] * 3
    assert seen == delivered


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("simd", [False, True])
@pytest.mark.parametrize("words", [(), ("-d", "cpu_reset"), ("-smp", "2", "-accel", "tcg,thread=single")])
def test_a_gate_that_is_rewritten(
    watch: Watch, probe: ProbeBuild, tmp_path: Path, bits: int, words: tuple[str, ...], simd: bool
) -> None:
    """See guest/rewritten.S. With QEMU's log of its interrupts, and without: it goes elsewhere, or two vCPUs share one,
    or it does not show enough."""
    logged = not (words or simd or probe.told)
    jumps = 0 if logged or probe.told else 1  # one that comes with a frame, to a gate's handler, is taken for an entry
    kernel = built("rewritten", tmp_path, bits)
    watched = watch("-kernel", str(kernel), "-device", "isa-debug-exit,iobase=0xf4", *words, simd=simd)
    watched.machine.cont()

    def entries() -> Batch:
        rows = watched.rows
        found: Batch = rows[(rows["kind"] == Kind.ENTRY) & (rows["vector"] == 6)][jumps:]
        return found

    watched.run(lambda: len(entries()) == 18 and (not logged or watched.ring.header["log"][0] == Log.ON))
    watched.machine.inject_nmi()
    watched.run(lambda: watched.machine.ending() is not None)
    watched.drain()
    handlers = sorted(set(entries()["pc"].tolist()))
    seen = [handlers.index(pc) for pc in entries()["pc"].tolist()]
    first = len(handlers) - 1  # it lies behind the others
    assert seen == [first, *range(8), 7, *range(8), 7, *range(8, 16)]
    assert (watched.source.counters["heard"] > 0) == logged


@pytest.mark.parametrize("bits", [32, 64])
def test_interrupts_through_the_vectors_of_exceptions(watch: Watch, tmp_path: Path, bits: int) -> None:
    """See guest/pic.S."""
    rows = to_its_end(watch, built("pic", tmp_path, bits)).rows
    mine = rows[(rows["pc"] >> np.uint64(20) == 1) & ((rows["kind"] == Kind.ENTRY) | (rows["kind"] == Kind.EXIT))]
    entries, exits = mine[mine["kind"] == Kind.ENTRY], mine[mine["kind"] == Kind.EXIT]
    assert entries["vector"].tolist() == [8, 8, 8, 13]
    assert entries["how"].tolist() == [How.INTERRUPT] * 3 + [How.EXCEPTION]
    assert ((entries["flags"] & Flag.ERROR_CODE) != 0).tolist() == [False] * 3 + [True]
    assert entries["error"][-1] == 0x1238
    assert exits["match"].tolist()[:3] == entries["seq"].tolist()[:3]


@pytest.mark.parametrize("bits", [32, 64])
def test_devices_are_not_read(watch: Watch, tmp_path: Path, bits: int) -> None:
    """See guest/device.S."""
    assert entries_of(watch, built("device", tmp_path, bits))["vector"].tolist() == [3]


def test_a_table_that_is_mapped_in_part_and_one_that_moves(watch: Watch, tmp_path: Path) -> None:
    """See guest/moved.S."""
    entries = entries_of(watch, built("moved", tmp_path, 64))
    assert entries["vector"].tolist() == [3, 6, 6, 3, 6, 6, 6, 6, 3]
    assert (entries["pc"] >> np.uint64(30)).tolist() == [0] * 6 + [3] * 3


@pytest.mark.parametrize("bits", [32, 64])
def test_a_handler_that_is_another_one_each_time(watch: Watch, tmp_path: Path, bits: int) -> None:
    """See guest/many.S."""
    entries = entries_of(watch, built("many", tmp_path, bits))
    assert (entries["vector"] == 3).all()
    assert (np.diff(entries["pc"]) == 16).all()
    assert len(entries) == 8000


@pytest.mark.parametrize("bits", [32, 64])
def test_a_table_whose_pointer_lies_where_a_prefix_might(watch: Watch, tmp_path: Path, bits: int) -> None:
    """See guest/pointer.S."""
    entries = entries_of(watch, built("pointer", tmp_path, bits))
    assert entries["vector"].tolist() == [3, 3] * (1 if bits == 64 else 2)


@pytest.mark.parametrize("bits", [32, 64])
def test_entries_around_and_in_system_management_mode(watch: Watch, tmp_path: Path, bits: int) -> None:
    """See guest/smm.S."""
    watched = to_its_end(watch, built("smm", tmp_path, bits), "-machine", "pc")
    assert watched.source.lost == 0
    entries = watched.rows[watched.rows["kind"] == Kind.ENTRY]
    assert (entries["how"] == How.SOFT).all()
    assert entries["vector"].tolist() == [0x40, *[0x40, 0x41, 0x40, 0x40, 0x40] * 10]
    assert (entries["mode"] == np.where(entries["vector"] == 0x41, 32, bits)).all()
    exits = watched.rows[watched.rows["kind"] == Kind.EXIT]
    assert (exits["flags"] & Flag.IDENTICAL != 0).all()
    assert len(exits) == len(entries)


@pytest.mark.parametrize("bits", [32, 64])
def test_who_is_interrupted_where_a_switch_returns_comes_back_by_no_switch(
    watch: Watch, tmp_path: Path, bits: int
) -> None:
    """See guest/ways.S: the first way back is not seen, and what is remembered of that switch is out of date."""
    rows = to_its_end(watch, built("ways", tmp_path, bits)).rows
    rows = rows[rows["seq"] > rows["seq"][rows["kind"] == Kind.IDT][-1]]  # behind the firmware's
    left = rows["seq"][rows["kind"] == Kind.SWITCH_OUT].tolist()
    back = rows["match"][rows["kind"] == Kind.SWITCH_IN].tolist()
    assert len(left) == 2
    assert back == left[1:]
    exits = rows[rows["kind"] == Kind.EXIT]
    assert (exits["flags"] & Flag.IDENTICAL != 0).tolist() == [True, False]


@pytest.mark.parametrize("bits", [32, 64])
def test_far_returns_to_what_was_interrupted(watch: Watch, tmp_path: Path, bits: int) -> None:
    """See guest/far.S."""
    rows = to_its_end(watch, built("far", tmp_path, bits)).rows
    exits = rows[(rows["kind"] == Kind.EXIT) & (rows["how"] == How.FAR)]
    assert (exits["flags"] & Flag.IDENTICAL != 0).tolist() == [True, True, False, False, True]
    assert (exits["flags"] & Flag.FLAGS_PARTIAL != 0).tolist() == [False, False, True, False, False]
    assert exits["value"].tolist() == [0, 0, 1, 0, 0]
    entries = rows[(rows["kind"] == Kind.ENTRY) & (rows["vector"] == 0x40)][-5:]
    assert exits["match"].tolist() == entries["seq"].tolist()
    assert (exits["rflags"][[0, 1, 3, 4]] == entries["rflags"][[0, 1, 3, 4]]).all()


@pytest.mark.parametrize("bits", [32, 64])
def test_near_returns_to_what_was_interrupted(watch: Watch, tmp_path: Path, bits: int) -> None:
    """See guest/near.S."""
    rows = to_its_end(watch, built("near", tmp_path, bits)).rows
    exits = rows[(rows["kind"] == Kind.EXIT) & (rows["how"] == How.NEAR)]
    assert (exits["flags"] & Flag.IDENTICAL != 0).tolist() == [True, False]
    entries = rows[(rows["kind"] == Kind.ENTRY) & (rows["vector"] == 0x40)][-3:-1]
    assert exits["match"].tolist() == entries["seq"].tolist()
    assert (exits["rflags"] == entries["rflags"]).all()
    assert (exits["rsi"] - entries["rsi"]).tolist() == [0, 1]


def test_stores_and_tracked_variables(watch: Watch, guest: Kernel) -> None:
    kernel = guest("clean-nrk")
    watched = watch("-kernel", str(kernel), watch=True)
    assert watched.source.capabilities & Capability.STORES
    symbols = subprocess.run(["nm", str(kernel)], capture_output=True, text=True, check=True).stdout
    ticks = int(re.findall(r"^(\w+) \w ticks$", symbols, re.MULTILINE)[0], 16)
    watched.source.set_watch([(ticks, ticks + 4)])
    watched.source.set_tracked([TrackedVariable(ticks, 4), TrackedVariable(8, 8, gs=True)])
    watched.machine.cont()
    watched.run(watched.done)
    rows = watched.rows
    stores = rows[(rows["kind"] == Kind.STORE) & (rows["addr"] == ticks)]
    said = summary(watched)["ticks"]
    values = stores["value"]
    assert values[values > 0].tolist() == list(range(1, said + 1))
    assert (stores["cpl"] == 0).all()
    written = rows[(rows["kind"] == Kind.TRACKED) & (rows["addr"] == ticks)]
    assert len(written) >= said - 1  # seen from the first entry on, which tells where the variable lies
    interrupts = rows[(rows["kind"] == Kind.ENTRY) & (rows["vector"] == 0x40)]
    assert interrupts["tracked"][:, 0].tolist() == list(range(said))
    areas = interrupts["tracked"][:, 1]
    assert (areas >> 63 == 1).all()  # the current thread's save area, a kernel address
    assert len(set(areas.tolist())) > 2


def test_without_a_reason_no_stores_are_looked_at_and_no_variables(watch: Watch, guest: Kernel) -> None:
    watched = watch("-kernel", str(guest("clean-osdev")), watch=True)
    watched.machine.cont()
    watched.run(watched.done)
    assert not (watched.rows["kind"] == Kind.STORE).any()
    contexts = watched.rows[np.isin(watched.rows["kind"], (Kind.ENTRY, Kind.EXIT))]
    assert (contexts["tracked"] == NOT_READ).all()


def test_simd_state(watch: Watch, guest: Kernel) -> None:
    watched = watch("-kernel", str(guest("clean-nrk")), simd=True)
    assert watched.source.capabilities & Capability.SIMD
    watched.machine.cont()
    watched.run(watched.done)
    rows = watched.rows
    both = rows[(rows["kind"] == Kind.ENTRY) | (rows["kind"] == Kind.EXIT)]
    assert (both["flags"] & Flag.SIMD).all()
    assert int(both["mxcsr"][-1]) & 0x1F80 == 0x1F80
    user = both[(both["cs"] & 3) == 3]
    assert (user["simd"]["xmm"] != 0).any()
    assert (user["simd"]["fctrl"] != 0).all()


@pytest.mark.parametrize(("name", "kind"), [("swapgs-missing", Kind.GS_ACCESS), ("callee-lost", Kind.SWITCH_IN)])
def test_what_the_probe_alone_sees(watch: Watch, guest: Kernel, name: str, kind: int) -> None:
    watched = watch("-kernel", str(guest(name)))
    watched.machine.cont()
    watched.run(lambda: len(watched.parts) > 0 and (watched.rows["kind"] == kind).any(), 20)
    row = watched.rows[watched.rows["kind"] == kind][0]
    if kind == Kind.GS_ACCESS:
        assert row["cpl"] == 0
        assert int(row["addr"]) - int(row["gs_base"]) < 4096
        assert not row["flags"] & Flag.PARITY_KERNEL


def test_a_killed_qemu_ends_the_stream(watch: Watch, guest: Kernel) -> None:
    watched = watch("-kernel", str(guest("clean-nrk")))
    watched.machine.cont()
    watched.run(lambda: sum(map(len, watched.parts)) > 500)
    os.kill(watched.machine.pid, signal.SIGKILL)
    began = time.monotonic()
    watched.run(lambda: False)
    assert time.monotonic() - began < 5
    assert watched.source.read(1.0) is None
    assert watched.source.lost == 0


def test_a_killed_reader_leaves_guest_and_events(probe: ProbeBuild, guest: Kernel, tmp_path: Path) -> None:
    ring, serial = tmp_path / "ring", tmp_path / "serial"
    code = (
        "import sys, time; from pathlib import Path; from gdbext.sources.ring_file import RingFile;"
        f"ring = RingFile.create(Path({str(ring)!r})); ring.header['halt'] = 1;"
        "print('made', flush=True); time.sleep(60)"
    )
    reader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"made\n"
    serial.touch()
    words = [str(probe.qemu), "-kernel", str(guest("clean-nrk")), "-m", "64M", "-net", "none", "-display", "none"]
    words += ["-serial", f"file:{serial}", *plugin_args(probe, ring, rows=256)]
    qemu = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    try:
        time.sleep(1.5)
        assert "guest: done" not in serial.read_text()  # it waits: for a verdict, or for room
        reader.kill()
        reader.wait()
        deadline = time.monotonic() + 30
        while "guest: done" not in serial.read_text():
            assert time.monotonic() < deadline, serial.read_text()
            assert qemu.poll() is None
            time.sleep(0.05)
    finally:
        for process in (reader, qemu):
            process.kill()
            process.communicate()
    source = LeftoverSource(ring)
    rows = source.read(0)
    assert rows is not None
    assert len(rows) == 255
    assert source.lost > 1000
    assert (np.diff(rows["seq"].astype(np.int64)) == 1).all()


def test_everything_of_the_probe_fits_the_i386_emulator(tmp_path: Path) -> None:
    qemu = shutil.which("qemu-system-i386")
    if qemu is None:
        pytest.skip("no qemu-system-i386 here")
    from gdbext.qemu.probe import build

    ring = tmp_path / "ring"
    words = [
        "-kernel",
        str(built("handlers", tmp_path, 32)),
        "-display",
        "none",
        "-net",
        "none",
        "-device",
        "isa-debug-exit,iobase=0xf4",
    ]
    words += plugin_args(build(Path(qemu)), ring, rows=1 << 17)
    done = subprocess.run([qemu, *words], stdin=subprocess.DEVNULL, timeout=60, check=False)
    assert done.returncode == 2 * 10 + 1  # the last step
    rows = LeftoverSource(ring).read(0)
    assert rows is not None
    entries = rows[rows["kind"] == Kind.ENTRY]
    assert entries["vector"][:4].tolist() == [0x40, 0x41, 0x41, 0x41]
    assert (entries["mode"] == 32).all()
    assert (entries["flags"] & Flag.NO_STACK).all()


@pytest.mark.parametrize(("name", "smp"), [("clean-nrk", 1), ("clean-osdev", 2), ("clean-ia32", 1)])
def test_entries_are_those_that_qemu_logs(watch: Watch, guest: Kernel, tmp_path: Path, name: str, smp: int) -> None:
    log = tmp_path / "log"
    kernel = guest(name)
    watched = watch("-kernel", str(kernel), "-smp", str(smp), "-d", "int", "-D", str(log))
    watched.machine.cont()
    watched.run(watched.done, 60)
    watched.machine.stop()
    watched.drain()
    rows = watched.rows
    seen = Counter(rows["vector"][(rows["kind"] == Kind.ENTRY) & (rows["vector"] < 0x100)].tolist())
    # One line for each delivery; the firmware's are real-mode ones (a selector that is no kernel's or user's).
    lines = re.findall(r"^ *\d+: v=(\w+) e=\w+ i=\d cpl=(\d) IP=(\w+):(\w+)", log.read_text(), re.MULTILINE)
    logged = Counter(int(v, 16) for v, cpl, cs, ip in lines if int(cs, 16) & ~3 and int(cs, 16) < 0x80 and len(ip) > 4)
    assert seen == logged


def test_a_handler_at_its_other_address(watch: Watch, tmp_path: Path) -> None:
    """See guest/alias.S."""
    entries = entries_of(watch, built("alias", tmp_path, 64))
    assert entries["vector"].tolist() == [6, 6, 4] * 10
    assert (entries["pc"] >> np.uint64(30) == 1).all()
