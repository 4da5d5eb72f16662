"""The gdbstub source: a GDB child streams rows; what goes wrong is one clear line, and nothing is left running."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gdbext.errors import CtxwatchError, EnvironmentUnusable
from gdbext.events.row import Flag, Kind
from gdbext.profiles.profile import find
from gdbext.qemu.machine import COUNTED_TIME, Machine
from gdbext.rules.engine import Engine
from gdbext.sources.base import Capability
from gdbext.sources.gdbstub import GdbstubSource
from tests.gdb.conftest import Boot, Live
from tests.strangers import building

pytestmark = pytest.mark.gdb

SLOTS = find("nrk").layout.slots  # type: ignore[union-attr]  # it has one
RIP, CS = SLOTS["rip"], SLOTS["cs"]
"""Of a save area in the guests of nrk's style."""


def children() -> set[int]:
    """Our child processes that are no zombies."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return {int(line.split()[0]) for line in listed.stdout.splitlines() if "Z" not in line and "ps" not in line}


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    before = children()
    yield
    deadline = time.monotonic() + 5
    while len(children() - before) > 1 and time.monotonic() < deadline:  # ps itself is one
        time.sleep(0.05)
    assert len(children() - before) <= 1


def watch(live: Live, **options: object) -> GdbstubSource:
    return GdbstubSource(str(live.machine.gdb), kernel=live.stripped, **options)  # type: ignore[arg-type]


def rows(source: GdbstubSource, timeout: float) -> int:
    """How many rows come within `timeout`."""
    batch = source.read(timeout)
    return 0 if batch is None else len(batch)


def read_all(source: GdbstubSource, seconds: float) -> int:
    """How many rows come to the end of the stream, in `seconds` at most."""
    count, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline and (batch := source.read(0.1)) is not None:
        count += len(batch)
    return count


@pytest.mark.guest
def test_rows_come_in_order_and_the_guest_goes_on_after_close(boot: Boot) -> None:
    live = boot("clean-nrk")
    engine = Engine()
    with contextlib.closing(watch(live)) as source:
        assert not source.capabilities & Capability.HALT
        seen = 0
        while seen < 400:
            batch = source.read(0.1)
            assert batch is not None
            if len(batch):
                assert np.all(np.diff(batch["seq"].astype(np.int64)) == 1)
                assert int(batch["seq"][0]) == seen + 1
                seen = int(batch["seq"][-1])
                assert engine.feed(batch) == []
        assert source.lost == 0
        assert batch is not None
        code = source.read_memory(int(batch["pc"][-1]), 16)
        assert len(code) == 16
        with pytest.raises(OSError, match="unmapped"):
            source.read_memory(0xFFFF_8000_0000_0000, 8)
    source.close()
    live.wait_for("guest: done")


@pytest.mark.guest
def test_a_waiting_row_holds_the_guest_until_it_is_released(boot: Boot) -> None:
    # By the host's clock the next interrupt would be due each time before the guest has moved.
    live = boot("nrk-rflags", "-icount", COUNTED_TIME)
    engine = Engine()
    with contextlib.closing(watch(live, halt=True)) as source:
        assert source.capabilities & Capability.HALT
        found: list[str] = []
        while not found:
            batch = source.read(0.1)
            assert batch is not None
            found = [finding.code for finding in engine.feed(batch)]
            waiting = batch[(batch["flags"] & Flag.WAITING) != 0]
            assert len(waiting) <= 1
            if len(waiting):
                assert waiting["kind"][0] in (Kind.EXIT, Kind.SWITCH_IN)
                time.sleep(0.05)
                assert rows(source, 0) == 0
                source.release(int(waiting["cpu"][0]), bool(found))
        assert found == ["CW102"]
        time.sleep(0.2)
        assert rows(source, 0.2) == 0


@pytest.mark.guest
def test_stores_are_told_with_the_instruction_that_makes_them(boot: Boot) -> None:
    """Also those that leave what was there: the slots of a kernel's save areas, with what each save puts there."""
    live = boot("clean-nrk", "-icount", COUNTED_TIME)
    with contextlib.closing(watch(live)) as source:
        slots: dict[int, str] = {}
        interrupted: list[dict[str, int]] = []
        told: list[tuple[str, int, int, int]] = []
        while len(told) < 40:
            batch = source.read(0.1)
            assert batch is not None
            for row in batch:
                if row["kind"] == Kind.ENTRY:
                    interrupted.append({name: int(row[name]) for name in ("rip", "cs", "gs_base", "kernel_gs_base")})
                elif row["kind"] == Kind.STORE:
                    told.append((slots[int(row["addr"])], int(row["value"]), int(row["size"]), int(row["pc"])))
            if interrupted and interrupted[-1]["cs"] & 3:
                area = int.from_bytes(source.read_memory(interrupted[-1]["kernel_gs_base"] + 8, 8), "little")
                if area and area + RIP not in slots:
                    slots |= {area + RIP: "rip", area + CS: "cs"}
                    source.set_watch([(start, start + 8) for start in slots])
        values = {name: {now[name] for now in interrupted} for name in ("rip", "cs")}
        assert {name for name, _, _, _ in told} == {"rip", "cs"}
        for name, value, size, pc in told:
            assert (size, source.read_memory(pc, 1)[0] & 0xF0) == (8, 0x40), hex(pc)  # a REX prefix: mov ..., 64-bit
            assert name == "rip" or value in values[name]
        assert len({value for name, value, _, _ in told if name == "rip"} & values["rip"]) > 1
        assert len({pc for _, _, _, pc in told}) <= 6


@pytest.mark.guest
def test_looks_at_the_guest_s_tables_lose_no_event(boot: Boot) -> None:
    """A guest that is stopped for a look often stands at a breakpoint, which GDB then goes on from without a word."""
    live = boot("clean-nrk", "-icount", COUNTED_TIME)
    engine = Engine()
    with contextlib.closing(watch(live)) as source:
        while engine.counts.exits < 80:
            source._next_look = min(source._next_look, time.monotonic() + 0.03)
            batch = source.read(0.1)
            assert batch is not None
            assert engine.feed(batch) == []


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(CtxwatchError, match=f"nobody listens at 127.0.0.1:{port}"):
        GdbstubSource(f"127.0.0.1:{port}")


def test_no_such_socket(tmp_path: Path) -> None:
    with pytest.raises(CtxwatchError, match="nobody listens at"):
        GdbstubSource(str(tmp_path / "none.sock"))


@pytest.mark.slow
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 400 Bad Request\r\n\r\n", b"$OK#9a" * 50])
def test_who_listens_does_not_speak_gdbs_protocol(answer: bytes) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(4)
        kept: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    kept.append(peer)
                    peer.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(CtxwatchError, match=r"does not speak GDB's protocol|cannot be watched"):
            GdbstubSource(f"127.0.0.1:{server.getsockname()[1]}")
        server.shutdown(socket.SHUT_RDWR)
        for peer in kept:
            peer.close()


def test_no_gdb() -> None:
    with pytest.raises(EnvironmentUnusable, match="there is no no-such-gdb"):
        GdbstubSource("127.0.0.1:1", gdb="no-such-gdb")


def executable(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_gdb_without_python(tmp_path: Path) -> None:
    fake = executable(
        tmp_path / "gdb",
        f"""#!{sys.executable}
import re, sys
print("(gdb) ", flush=True)
for line in sys.stdin:
    token = re.match(r"[0-9]*", line)[0]
    if "python" in line:
        print(token + '^error,msg="Python scripting is not supported in this copy of GDB."', flush=True)
    elif "gdb-exit" in line:
        sys.exit()
    else:
        print(token + "^done", flush=True)
""",
    )
    with pytest.raises(EnvironmentUnusable, match="this GDB has no Python: Python scripting is not supported"):
        GdbstubSource("127.0.0.1:1", gdb=fake)


def test_a_gdb_that_dies_at_once(tmp_path: Path) -> None:
    fake = executable(tmp_path / "gdb", "#!/bin/sh\nexit 7\n")
    with pytest.raises(EnvironmentUnusable, match="GDB does not start"):
        GdbstubSource("127.0.0.1:1", gdb=fake)


def test_an_extension_that_cannot_load_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CTXWATCH_VENV", str(tmp_path))
    with pytest.raises(EnvironmentUnusable, match="has no numpy and no capstone"):
        GdbstubSource("127.0.0.1:1")


@pytest.mark.guest
@pytest.mark.parametrize("halt", [False, True])
def test_a_guest_of_which_no_image_is_known_is_watched_once_it_has_a_table(
    boot: Boot, tmp_path: Path, halt: bool
) -> None:
    live = boot("clean-nrk")
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"MZ" * 1000)
    with contextlib.closing(GdbstubSource(str(live.machine.gdb), kernel=kernel, halt=halt)) as source:
        kinds = Counter[int]()
        deadline = time.monotonic() + 60
        while (kinds[Kind.ENTRY] < 20 or kinds[Kind.EXIT] < 20) and time.monotonic() < deadline:
            batch = source.read(1.0)
            assert batch is not None
            kinds.update(batch["kind"].tolist())
            for cpu in batch["cpu"][(batch["flags"] & Flag.WAITING) != 0]:
                source.release(int(cpu), False)
        assert kinds[Kind.ENTRY] >= 20
        assert kinds[Kind.EXIT] >= 20


@pytest.mark.guest
def test_a_kernel_whose_segments_begin_elsewhere_is_refused(tmp_path: Path) -> None:
    stranger = building.find("seg32")
    if stranger.missing:
        pytest.skip(f"{stranger.missing} is not installed")
    command = building.command(stranger, building.build(stranger, tmp_path, None))
    with (
        Machine(command, gdbstub=True) as machine,
        contextlib.closing(GdbstubSource(str(machine.gdb), arch=machine.arch)) as source,
        pytest.raises(CtxwatchError, match="code segment 0x8 begins at 0x100000") as refused,
    ):
        read_all(source, 60)
    assert "through the probe" in refused.value.todo


@pytest.mark.guest
@pytest.mark.parametrize("who", ["qemu", "gdb"])
def test_a_death_ends_the_stream(boot: Boot, who: str) -> None:
    live = boot("clean-nrk")
    with contextlib.closing(watch(live)) as source:
        live.until(lambda: rows(source, 0.1), 20, "rows")
        assert source._child is not None
        os.kill(live.machine.pid if who == "qemu" else source._child._process.pid, signal.SIGKILL)
        says = pytest.raises(CtxwatchError, match="GDB is gone: killed by SIGKILL")
        with says if who == "gdb" else contextlib.nullcontext():
            live.until(lambda: source.read(0.1) is None, 10, "the end of the stream")


@pytest.mark.guest
def test_a_triple_fault_ends_the_stream(boot: Boot) -> None:
    live = boot("triple-fault")
    with contextlib.closing(watch(live)) as source:
        deadline = time.monotonic() + 60
        while source.read(0.1) is not None:
            assert time.monotonic() < deadline
    ending = live.machine.ending()
    assert ending is not None
    assert ending.died


@pytest.mark.guest
def test_gdb_ends_with_us(boot: Boot) -> None:
    live = boot("clean-nrk")
    script = (
        "import sys; from pathlib import Path; from gdbext.sources.gdbstub import GdbstubSource\n"
        f"source = GdbstubSource({str(live.machine.gdb)!r}, kernel=Path({str(live.kernel)!r}))\n"
        "print(source._child._process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    gdb = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    Live.until(lambda: not Path(f"/proc/{gdb}").exists(), 5, "GDB to end")
