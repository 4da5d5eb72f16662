"""The ring file between a C writer and the Python reader: order, loss, waiting, death on either side, refusals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from gdbext.errors import CtxwatchError, EnvironmentUnusable, RecordingError, UsageError
from gdbext.events.row import Batch, Flag, Kind, empty
from gdbext.recording.reader import Recording
from gdbext.sources.leftover import LeftoverSource
from gdbext.sources.probe import ProbeSource, _disjoint
from gdbext.sources.ring import HEADER_SIZE, WATCH_BITS, Log, Release, State, release_word, watch_granules
from gdbext.sources.ring_file import Merger, RingFile
from tests.repl.processes import wait_until_gone

Compiled = Callable[..., Path]
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a writer: ring, vCPUs, rows of each, events of each; one that is left at the end of the test is ended."""
    with contextlib.ExitStack() as started:

        def begin(writer: Path, ring: Path, cpus: int, rows: int, events: int, *more: str) -> subprocess.Popen[bytes]:
            words = [str(word) for word in (writer, ring, cpus, rows, events, *more)]
            process = started.enter_context(subprocess.Popen(words, stderr=subprocess.PIPE))
            started.callback(process.kill)
            return process

        yield begin


def opened(ring: RingFile) -> ProbeSource:
    """The source, once the writer has attached."""
    deadline = time.monotonic() + 60
    while int(ring.header["state"][0]) == State.EMPTY and time.monotonic() < deadline:
        time.sleep(0.001)
    return ProbeSource(ring)


def wait_until_full(path: Path) -> None:
    """Until a writer that was started without a reader has written more into each ring than it holds."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(CtxwatchError), contextlib.closing(RingFile.open_leftover(path)) as ring:
            if (ring.control["head"] > ring.header["rows"][0]).all():
                return
        assert time.monotonic() < deadline
        time.sleep(0.001)


def everything(source: ProbeSource) -> Batch:
    parts = []
    while (rows := source.read(60.0)) is not None:
        assert len(rows), "nothing came for a minute"
        parts.append(rows)
    return np.concatenate(parts) if parts else empty()


@pytest.mark.parametrize(("cpus", "flags"), [(1, ()), (4, ()), (4, ("-fsanitize=thread",))])
def test_every_row_arrives_once_and_in_order(
    start: Start, compiled: Compiled, tmp_path: Path, cpus: int, flags: tuple[str]
) -> None:
    events = 20000
    ring = RingFile.create(tmp_path / "ring")
    writer = start(compiled("ring_writer.c", *flags), ring.path, cpus, 64, events)
    source = opened(ring)
    rows = everything(source)
    assert writer.wait(60) == 0, writer.stderr.read() if writer.stderr else ""
    assert source.lost == 0
    assert (rows["seq"] == np.arange(1, cpus * events + 1)).all()
    for cpu in range(cpus):
        own = rows[rows["cpu"] == cpu]
        assert (own["value"] == np.arange(1, events + 1)).all()
        assert (own["rsp"] == ~own["value"]).all()
    source.close()
    assert not ring.path.exists()


@pytest.mark.parametrize("flags", [(), ("-fsanitize=thread",), ("-fsanitize=address,undefined",)])
def test_four_vcpus_and_a_reader_do_not_race(compiled: Compiled, tmp_path: Path, flags: tuple[str]) -> None:
    """Small rings, so that writers wait for room. A sanitizer that finds something changes the exit status."""
    words: list[str | Path] = [compiled("ring_race.c", *flags), tmp_path / "ring", "4", "64", "20000"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_waiting_vcpu_stands_still_until_it_is_released(start: Start, compiled: Compiled, tmp_path: Path) -> None:
    ring = RingFile.create(tmp_path / "ring")
    writer = start(compiled("ring_writer.c"), ring.path, 2, 64, 1000, "wait")
    source = opened(ring)
    released = [0, 0]
    seen = [0, 0]
    while (rows := source.read(60.0)) is not None:
        assert len(rows), "nothing came for a minute"
        for row in rows:
            cpu = int(row["cpu"])
            seen[cpu] = int(row["value"])
            if row["flags"] & Flag.WAITING:
                assert int(row["value"]) == 100 * (released[cpu] + 1)
                late = source.read(0.01)  # nothing of this vCPU may come while it waits
                assert late is None or not len(late[late["cpu"] == cpu])
                if late is not None and len(late):
                    source._ready.insert(0, late)
                source.release(cpu, halt=False)
                released[cpu] += 1
    assert writer.wait(60) == 0
    assert released == [10, 10]
    assert seen == [1000, 1000]
    source.close()


def test_a_killed_reader_makes_a_flight_recorder(start: Start, compiled: Compiled, tmp_path: Path) -> None:
    path = tmp_path / "ring"
    code = (
        "import sys, time; from pathlib import Path; from gdbext.sources.ring_file import RingFile;"
        f"ring = RingFile.create(Path({str(path)!r})); print('made', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"made\n"
        writer = start(compiled("ring_writer.c"), path, 2, 64, 50000, "wait")
        time.sleep(0.2)
        assert writer.poll() is None  # it waits for its reader
        reader.kill()
    assert writer.wait(60) == 0  # and goes on without
    leftover = LeftoverSource(path)
    rows = leftover.read(0)
    assert rows is not None
    assert leftover.lost > 90000
    assert len(rows) == 2 * 63  # the slot that may be half written is left out
    assert (np.diff(rows["seq"].astype(np.int64)) > 0).all()
    assert int(rows["seq"][-1]) == 100000
    for cpu in (0, 1):
        own = rows[rows["cpu"] == cpu]
        assert own["flags"][0] & Flag.STALE
        assert not (own["flags"][1:] & Flag.STALE).any()
    assert leftover.read(0) is None
    leftover.close()


def test_a_reader_that_comes_late_gets_what_is_left_and_then_all(
    start: Start, compiled: Compiled, tmp_path: Path
) -> None:
    path = tmp_path / "ring"
    writer = start(compiled("ring_writer.c"), path, 2, 64, 1 << 40)  # nobody made the file: it records by itself
    wait_until_full(path)
    source = ProbeSource(RingFile.attach(path))
    parts: list[Batch] = []
    while sum(map(len, parts)) < 100_000:
        rows = source.read(60.0)
        assert rows is not None
        parts.append(rows)
    writer.kill()
    parts.append(everything(source))
    rows = np.concatenate(parts)
    assert source.lost <= 2  # rows that were being written when it died
    for cpu in (0, 1):
        own = rows[rows["cpu"] == cpu][200:]  # behind the history, of which some may have been overwritten
        assert (np.diff(own["value"].astype(np.int64)) == 1).all()
    source.close()
    assert path.exists()  # not ours to remove
    writer.wait()


def test_a_reader_that_takes_over_at_once(start: Start, compiled: Compiled, tmp_path: Path) -> None:
    """The one before was killed while a vCPU waited for its verdict, and the vCPU has not noticed yet."""
    path = tmp_path / "ring"
    code = f"""
import time
from pathlib import Path
from gdbext.events.row import Flag
from gdbext.sources.probe import ProbeSource
from gdbext.sources.ring_file import RingFile
ring = RingFile.create(Path({str(path)!r}))
print("made", flush=True)
while not ring.header["state"][0]:
    time.sleep(0.001)
source = ProbeSource(ring)
while not (source.read(1.0)["flags"] & Flag.WAITING).any():
    pass
print("waits", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"made\n"
        start(compiled("ring_writer.c"), path, 1, 1024, 150, "wait")
        assert reader.stdout.readline() == b"waits\n"
        reader.kill()
        reader.wait()
    source = ProbeSource(RingFile.attach(path))
    rows = everything(source)
    assert rows["seq"].tolist() == list(range(1, 151))
    assert source.lost == 0
    source.close()


def test_a_killed_writer_ends_the_stream(start: Start, compiled: Compiled, tmp_path: Path) -> None:
    ring = RingFile.create(tmp_path / "ring")
    writer = start(compiled("ring_writer.c"), ring.path, 2, 64, 1 << 40)
    source = opened(ring)
    assert source.read(5.0) is not None
    writer.send_signal(signal.SIGKILL)
    time.sleep(0.1)  # a zombie by now, which holds no lock
    everything(source)
    assert source.read(1.0) is None
    writer.wait()
    source.close()


def test_one_reader_only(start: Start, compiled: Compiled, tmp_path: Path) -> None:
    ring = RingFile.create(tmp_path / "ring")
    writer = start(compiled("ring_writer.c"), ring.path, 1, 64, 1 << 40)
    source = opened(ring)
    try:
        with pytest.raises(UsageError, match=f"has a reader already: process {os.getpid()}"):
            RingFile.attach(ring.path)
        with pytest.raises(UsageError, match="exists"):
            RingFile.create(ring.path)
    finally:
        writer.kill()
        writer.wait()
        source.close()


def test_one_writer_only(start: Start, compiled: Compiled, tmp_path: Path) -> None:
    ring = RingFile.create(tmp_path / "ring")
    writer = start(compiled("ring_writer.c"), ring.path, 1, 64, 1 << 40)
    source = opened(ring)
    other = start(compiled("ring_writer.c"), ring.path, 1, 64, 1)
    assert other.wait(60) == 1
    assert other.stderr is not None
    assert f"belongs to another QEMU, process {writer.pid}".encode() in other.stderr.read()
    writer.kill()
    writer.wait()
    source.close()


def test_the_next_guest_of_a_script_takes_the_same_ring(start: Start, compiled: Compiled, tmp_path: Path) -> None:
    """What the last one left is kept beside it, unless somebody reads it just now."""
    path, kept = tmp_path / "ring", tmp_path / "ring.old"
    for events in (10, 20, 30):
        assert start(compiled("ring_writer.c"), path, 1, 64, events).wait(60) == 0
    counts = [len(np.concatenate(list(Recording(ring).batches()))) for ring in (kept, path)]
    assert counts == [20, 30]
    kept.unlink()
    reader = RingFile._open(path, writable=True)
    reader._become_reader()
    refused = start(compiled("ring_writer.c"), path, 1, 64, 40)
    assert refused.wait(60) == 1
    assert refused.stderr is not None
    assert b"was used before, and cannot be moved out of the way" in refused.stderr.read()
    reader.close()
    with Recording(path) as left:
        assert sum(map(len, left.batches())) == 30


def test_another_version_is_refused_on_both_sides(start: Start, compiled: Compiled, tmp_path: Path) -> None:
    ring = RingFile.create(tmp_path / "ring")
    ring.header["version"] = 77
    writer = start(compiled("ring_writer.c"), ring.path, 1, 64, 1)
    assert writer.wait(60) == 1
    with pytest.raises(
        EnvironmentUnusable, match=r"probe cannot start: the ring .* is of version 77\.1, this probe is"
    ):
        ProbeSource(ring)
    for read in (RingFile.open_leftover, Recording):
        with pytest.raises(RecordingError) as refused:
            read(ring.path)
        assert str(refused.value) == f"cannot read the ring {ring.path}: it is version 77.1, this ctxwatch reads 5.1"
    ring.close()


def test_no_room_is_an_error_at_the_start(compiled: Compiled, tmp_path: Path) -> None:
    ring = RingFile.create(tmp_path / "ring")
    limit = HEADER_SIZE + 100_000  # in place of a full file system
    code = "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    code += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); os.execv(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, "-c", code, str(compiled("ring_writer.c")), str(ring.path), "4", "65536", "10"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no room for the ring" in done.stderr
    with pytest.raises(EnvironmentUnusable, match=r"the probe cannot start: no room for the ring .* takes 95 MiB"):
        ProbeSource(ring)
    ring.close()


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\0" * HEADER_SIZE, b"CTXRING1"])
def test_what_is_no_ring_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ring"
    path.write_bytes(content)
    with pytest.raises(CtxwatchError, match="is not a ring"):
        LeftoverSource(path)


def test_a_damaged_ring_is_refused(start: Start, compiled: Compiled, tmp_path: Path) -> None:
    ring = RingFile.create(tmp_path / "ring")
    assert start(compiled("ring_writer.c"), ring.path, 1, 64, 10).wait(60) == 0
    ring.header["rows"] = 1 << 20
    with pytest.raises(RecordingError, match="damaged"):
        LeftoverSource(ring.path)
    ring.header["rows"] = 0
    with pytest.raises(RecordingError, match="damaged"):
        LeftoverSource(ring.path)
    ring.close()


def test_not_loaded_is_said(tmp_path: Path) -> None:
    ring = RingFile.create(tmp_path / "ring")
    with pytest.raises(EnvironmentUnusable, match="the probe is not loaded"):
        ProbeSource(ring)
    ring.close()


def test_the_ring_is_the_owners_alone(tmp_path: Path) -> None:
    ring = RingFile.create(tmp_path / "ring")
    assert ring.path.stat().st_mode & 0o777 == 0o600
    ring.close()


def batch(*numbers: int) -> Batch:
    rows = empty(len(numbers))
    rows["seq"] = numbers
    rows["kind"] = Kind.ENTRY
    return rows


def test_merging_holds_back_what_lies_behind_a_gap() -> None:
    now = [0.0]
    merger = Merger(lambda: now[0], patience=1.0)

    def merged(*taken: Batch, final: bool = False) -> list[int]:
        out = merger.merge(list(taken), final)
        return [] if out is None else out["seq"].tolist()

    assert merged(batch(2, 3), batch(1, 5)) == [1, 2, 3]
    assert merged() == []
    assert merged(batch(4)) == [4, 5]
    assert merged(batch(7, 9)) == []
    now[0] = 0.9
    assert merged() == []
    now[0] = 1.1
    assert merged() == [7, 9]  # 6 and 8 are given up
    assert merger.missing == 2
    assert merged(batch(6)) == [6]  # late, but there
    assert merger.missing == 1
    assert merged(batch(12), final=True) == [12]
    assert merger.missing == 3
    assert merged(batch(14)) == []
    now[0] = 9.0  # judging took long: 13 has come meanwhile, and 15 may yet come
    assert merged(batch(13, 16)) == [13, 14]
    assert merged(batch(15)) == [15, 16]
    assert merger.missing == 3


def test_watched_ranges_cover_every_granule_a_store_can_begin_in() -> None:
    assert _disjoint([(10, 20), (30, 30), (15, 40), (50, 60)]) == [(10, 40), (50, 60)]
    assert watch_granules(0x1000, 0x1100) == [0xF, 0x10]  # a store at 0xff8 reaches into it
    assert watch_granules(0x1020, 0x1021) == [0x10]
    assert len(watch_granules(0, 1 << 40)) == WATCH_BITS


def test_a_leftover_ring_is_read_as_a_recording(start: Start, compiled: Compiled, tmp_path: Path) -> None:
    path = tmp_path / "ring"
    assert start(compiled("ring_writer.c"), path, 2, 64, 50).wait(60) == 0
    with Recording(path) as whole:
        assert whole.flaw is None
        rows = np.concatenate(list(whole.batches()))
        assert (rows["seq"] == np.arange(1, 101)).all()
        assert [unit.mark.rows for unit in whole.index()] == [100]
    path.unlink()
    assert start(compiled("ring_writer.c"), path, 1, 64, 1000).wait(60) == 0
    with Recording(path) as last:
        assert last.flaw == "the 936 events before these were overwritten"
        assert sum(map(len, last.batches())) in (63, 64)


def test_a_ring_that_nobody_wrote_is_no_recording(tmp_path: Path) -> None:
    ring = RingFile.create(tmp_path / "ring")
    with pytest.raises(RecordingError, match="the probe is not loaded"):
        Recording(ring.path)
    ring.close()


def test_a_full_file_system_is_told_before_qemu_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        f_bavail, f_frsize = 100, 4096

    monkeypatch.setattr(os, "fstatvfs", lambda _handle: Full)
    with pytest.raises(EnvironmentUnusable, match=r"no room for the ring .*: No space left on device; free some space"):
        RingFile.create(tmp_path / "ring")
    assert list(tmp_path.iterdir()) == []


class Asked:
    """The monitor of a QEMU that answers, with nothing to say, once `over` says so."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self.over = over

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        timeout: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> str:
        deadline = time.monotonic() + 60
        while not self.over():
            assert time.monotonic() < deadline, f"{command}: not let go"
            time.sleep(0.001)
            if meanwhile is not None:
                meanwhile()
        return ""


def test_a_vcpu_is_let_go_where_qemu_waits_for_it(start: Start, compiled: Compiled, tmp_path: Path) -> None:
    """Ctrl-C in GDB while a rule reads memory: QEMU stops all vCPUs first, and one of them waits for the verdict."""
    ring = RingFile.create(tmp_path / "ring")
    writer = start(compiled("ring_writer.c"), ring.path, 1, 1024, 100, "wait")
    with contextlib.closing(opened(ring)) as source:
        source._monitor = Asked(lambda: not ring.control["waiting"].any())  # somebody else has told it to stop
        while not int(ring.control["waiting"][0]):
            time.sleep(0.001)
        source.read_memory(0x1000, 8)
        assert not int(ring.control["waiting"][0])
        assert writer.wait(60) == 0


def test_rows_that_come_while_qemu_is_asked_for_its_log(start: Start, compiled: Compiled, tmp_path: Path) -> None:
    """QEMU takes its time, and the ring is emptied meanwhile: that is given out before what comes after it."""
    ring = RingFile.create(tmp_path / "ring")
    writer = start(compiled("ring_writer.c"), ring.path, 1, 64, 5000)

    def full_again() -> bool:
        head, tail = int(ring.control["head"][0]), int(ring.control["tail"][0])
        return tail > 1000 and head - tail == 64

    with contextlib.closing(opened(ring)) as source:
        source._monitor = Asked(full_again)
        ring.header["log"] = Log.WANTED
        assert everything(source)["seq"].tolist() == list(range(1, 5001))
        assert int(ring.header["log"][0]) == Log.ON
    assert writer.wait(60) == 0


def test_a_release_that_comes_late_is_none(start: Start, compiled: Compiled, tmp_path: Path) -> None:
    """Of two releases for one wait the second must not let the vCPU run past its next one."""
    ring = RingFile.create(tmp_path / "ring")
    writer = start(compiled("ring_writer.c"), ring.path, 1, 1024, 300, "wait")
    source = opened(ring)
    waits: list[int] = []
    while (rows := source.read(60.0)) is not None:
        for row in rows[(rows["flags"] & Flag.WAITING) != 0]:
            if waits:
                ring.control["release"][0] = release_word(waits[-1], Release.HALT)
                time.sleep(0.05)
                assert int(ring.control["waiting"][0])
            waits.append(int(row["seq"]))
            source.release(0, halt=False)
    assert waits == [100, 200, 300]
    assert writer.wait(60) == 0
    source.close()


def test_a_writer_ends_with_the_process_that_started_it(compiled: Compiled, tmp_path: Path) -> None:
    words = [str(compiled("ring_writer.c")), str(tmp_path / "ring"), "1", "64", str(1 << 40)]
    code = f"""if True:
        import os, subprocess, time
        writer = subprocess.Popen({words!r}, stdout=subprocess.DEVNULL)
        while not os.path.exists({words[1]!r}):
            time.sleep(0.01)
        print(writer.pid)
        """
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60, check=True)
    wait_until_gone([int(done.stdout)])


def test_a_reader_may_follow_one_of_whose_map_a_view_lives_on(start: Start, compiled: Compiled, tmp_path: Path) -> None:
    path = tmp_path / "ring"
    writer = start(compiled("ring_writer.c"), path, 1, 64, 1 << 40)
    wait_until_full(path)
    first = RingFile.attach(path)
    view = first.control
    first.close()
    try:
        RingFile.attach(path).close()
        assert len(view)
    finally:
        writer.kill()
        writer.wait()
