"""The safety mode while the guest runs backwards: a guest recorded by QEMU (``-icount rr=record``) and replayed."""

from __future__ import annotations

import contextlib
import re
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdbext.qemu import guests
from gdbext.sources.leash import leash
from tests.gdb.conftest import bug_free
from tests.gdb.sessions import Typed

pytestmark = [pytest.mark.gdb, pytest.mark.guest, pytest.mark.slow]

_CLUSTER = 1 << 16
REVERSE = ("reverse-stepi", "reverse-nexti 2", "reverse-step", "reverse-next", "reverse-finish", "rsi")


def empty_disk(path: Path) -> None:
    """A qcow2 image of 16 MiB, for QEMU's snapshots: header, refcount table, one refcount block, L1 table."""
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, 16 << 20, 0, 1, 3 * _CLUSTER, _CLUSTER, 1, 0, 0)
    refcounts = struct.pack(">4H", 1, 1, 1, 1)
    parts = (header, struct.pack(">Q", 2 * _CLUSTER), refcounts, b"")
    path.write_bytes(b"".join(part.ljust(_CLUSTER, b"\0") for part in parts))


@contextlib.contextmanager
def qemu(directory: Path, mode: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    """QEMU in record or replay mode."""
    guest = guests.find("clean-nrk")
    command = [
        *guest.command(guests.build(guest)), "-display", "none", "-nic", "none", "-monitor", "none",
        "-action", "reboot=shutdown", "-serial", f"file:{directory / mode}",
        "-drive", f"file={directory / 'snapshots'},if=none,id=rr",
        "-icount", f"shift=3,rr={mode},rrfile={directory / 'log'},rrsnapshot=start", *more,
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=leash())
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the recording of a few seconds of a guest."""
    directory = tmp_path_factory.mktemp("rr")
    empty_disk(directory / "snapshots")
    with qemu(directory, "record") as process:
        deadline = time.monotonic() + 30
        printed = directory / "record"
        while process.poll() is None and time.monotonic() < deadline:
            if printed.exists() and "guest: done" in printed.read_text("utf-8", "replace"):
                break
            time.sleep(0.1)
        if process.poll():
            assert process.stderr is not None
            pytest.skip(f"this QEMU does not record: {process.stderr.read().strip()[:200]}")
    return directory


@pytest.fixture
def gdb(recorded: Path) -> Iterator[Typed]:
    """A GDB in the middle of the replay."""
    socket = recorded / "gdb.sock"
    with qemu(recorded, "replay", "-S", "-gdb", f"unix:{socket},server=on,wait=off"):
        deadline = time.monotonic() + 10
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        guest = guests.find("clean-nrk")
        with Typed(f"file {guests.build(guest)}", f"target remote {socket}") as gdb:
            gdb.type("tbreak tick if ticks >= 3")
            assert "Temporary breakpoint 1, tick" in gdb.type("continue", 60)
            said = gdb.type("reverse-stepi", 60)
            if "does not support" in said:
                pytest.skip("QEMU does not run this guest backwards")
            assert "refused" not in said
            yield gdb


def window(gdb: Typed) -> str:
    return gdb.type("output $ctx_window($pc)")


def test_backwards_steps_are_refused_in_a_window_and_stop_behind_one(gdb: Typed) -> None:
    for command in ("ctx safe override tbreak *(syscall_entry+3)", "continue"):
        gdb.type(command, 60)
    here = gdb.type("output/x $rip")
    for command in REVERSE:
        said = gdb.type(command, 60)
        bug_free(said)
        assert re.search(r"^\S+ refused: .* is in a window \(syscall-entry\)", said, re.MULTILINE), command
    assert gdb.type("output/x $rip") == here
    assert "Arrived at" in gdb.type("ctx skip", 60)
    said = gdb.type("reverse-stepi", 60)
    assert "refused: " in said
    assert "is the first instruction after a window (syscall-entry)" in said
    landing = gdb.type("output/x $rip")
    gdb.type("stepi 3", 60)
    said = gdb.type("reverse-stepi 20", 60)
    bug_free(said)
    assert "stopped at the edge of a window (syscall-entry" in said
    assert gdb.type("output/x $rip") == landing
    assert window(gdb) == '"none"'


def test_a_step_back_into_an_exit_is_led_out_of_it_again(gdb: Typed) -> None:
    for line in ("python import sys; sys.path.append('.')", "python from tests.gdb.safety_places import *"):
        gdb.type(line)
    for place in ("exit_of('syscall_entry', 'sysret')", "exit_of('restore_context', 'iret')"):
        bug_free(gdb.type(f"python to({place})", 60))
        assert "Arrived at" in gdb.type("ctx skip", 60)
        target = gdb.type("output/x $rip")
        for forward, back in (("", "reverse-stepi"), ("stepi 2", "reverse-stepi 9")):
            gdb.type(forward or "echo", 60)
            said = gdb.type(back, 60)
            bug_free(said)
            assert re.search(r"edge of a window \(exit, .*: reverse-stepi led to .* inside it, .* forward again", said)
            assert gdb.type("output/x $rip") == target, (place, back)
            assert "is on" in gdb.type("show may-call-functions")
