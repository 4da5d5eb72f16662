"""A real QEMU as a child: started, read, ended, and never left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gdbext.errors import EnvironmentUnusable, GuestFailed, UsageError
from gdbext.qemu import child, guests, images
from gdbext.qemu.machine import Ending, Machine, which
from gdbext.qemu.private import PrivateDirectory
from gdbext.qemu.qmp import Qmp

pytestmark = pytest.mark.guest

EMPTY = ["qemu-system-x86_64", "-display", "none", "-m", "16M"]


def wait(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def boot(name: str) -> Machine:
    guest = guests.find(name)
    return Machine(guest.command(guests.build(guest)))


def lines_until(machine: Machine, text: str, seconds: float = 40.0) -> list[str]:
    seen: list[str] = []

    def found() -> bool:
        seen.extend(machine.serial())
        return any(text in line for line in seen)

    wait(found, seconds)
    return seen


def test_a_guest_runs_to_its_end() -> None:
    with boot("clean-nrk") as machine:
        assert machine.arch == "x86_64"
        assert machine.accelerator == "tcg"
        assert machine.ending() is None
        machine.cont()
        assert "guest: start nrk" in lines_until(machine, "guest: done")
        pid, directory = machine.pid, machine.directory
    assert gone(pid)
    assert not directory.exists()


def test_it_waits_before_the_first_instruction() -> None:
    with boot("clean-nrk") as machine:
        time.sleep(0.3)
        assert machine.serial() == []
        assert machine.qmp.execute("query-status")["running"] is False


def test_a_triple_fault_pauses_the_machine() -> None:
    with boot("triple-fault") as machine:
        machine.cont()
        wait(lambda: machine.ending() is not None)
        ending = machine.ending()
        assert ending is not None
        assert ending.died
        assert ending.how == "reset"
        assert "RIP=" in machine.qmp.hmp("info registers")


def test_a_reset_that_the_guest_asks_for_is_no_death(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes.fromhex("b0fe e664 f4ebfd").ljust(510, b"\0") + b"\x55\xaa")  # mov al, 0xfe; out 0x64, al
    with Machine([*EMPTY, "-drive", f"file={disk},format=raw"]) as machine:
        machine.cont()
        wait(lambda: machine.ending() is not None)
        ending = machine.ending()
        assert ending is not None
        assert ending.how == "restart"
        assert not ending.died


def test_memory_is_read_by_virtual_address() -> None:
    guest = guests.find("clean-nrk")
    kernel = guests.build(guest)
    image = images.load(kernel)
    address = image.symbols.address("interrupt_entry")
    assert address is not None
    assert address >> 63
    with Machine(guest.command(kernel)) as machine:
        machine.cont()
        lines_until(machine, "guest: start")
        assert machine.read_memory(address, 16) == image.read(address, 16)
        with pytest.raises(OSError, match="memsave"):
            machine.read_memory(0xFFFF_9000_0000_0000, 8)


def test_a_guest_that_powers_off() -> None:
    with Machine(EMPTY) as machine:
        machine.cont()
        machine.qmp.execute("system_powerdown")
        machine.qmp.execute("quit")
        wait(lambda: machine.ending() is not None)
        ending = machine.ending()
        assert ending is not None
        assert not ending.died


def test_qemu_killed_from_outside() -> None:
    with Machine(EMPTY) as machine:
        machine.cont()
        os.kill(machine.pid, signal.SIGKILL)
        wait(lambda: machine.ending() is not None)
        assert machine.ending() == Ending("killed", "QEMU was killed by signal 9")
        directory = machine.directory
    assert not directory.exists()


def test_a_qemu_that_aborts_has_said_why(tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(f'#!/bin/sh\necho "ERROR:tb.c: assertion failed" >&2\nexec {which(EMPTY[0])} "$@"\n')
    program.chmod(0o755)
    with Machine([str(program), *EMPTY[1:]]) as machine:
        os.kill(machine.pid, signal.SIGABRT)
        wait(lambda: machine.ending() is not None)
        assert machine.ending() == Ending("killed", "QEMU was killed by signal 6 (ERROR:tb.c: assertion failed)")


@pytest.mark.parametrize("command", ["query-target", "query-version", "query-kvm"])
def test_qemu_killed_before_it_has_told_what_it_is(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    started: list[Any] = []
    spawn, execute = child.spawn, Qmp.execute

    def note(argv: Sequence[str]) -> Any:
        started.append(spawn(argv))
        return started[-1]

    def kill(self: Qmp, asked: str, *rest: Any, **options: Any) -> Any:
        if asked == command:
            started[0].proc.kill()
        return execute(self, asked, *rest, **options)

    monkeypatch.setattr(child, "spawn", note)
    monkeypatch.setattr(Qmp, "execute", kill)
    with pytest.raises(GuestFailed, match="QEMU did not start: it was killed by signal 9"):
        Machine(EMPTY)
    assert gone(started[0].pid)


def test_the_private_directory_is_private() -> None:
    with Machine(EMPTY) as machine:
        assert stat.S_IMODE(machine.directory.stat().st_mode) == 0o700
        assert (machine.directory / "qmp.sock").exists()


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["qemu-system-nonesuch"], EnvironmentUnusable, "no qemu-system-nonesuch here"),
        (["qemu-system-x86_64", "-bogus"], GuestFailed, "invalid option"),
        (["qemu-system-x86_64", "-kernel", "/nonexistent"], GuestFailed, "No such file"),
        (["qemu-system-x86_64", "-daemonize"], UsageError, "daemonize"),
        (["false"], GuestFailed, "did not start"),
    ],
)
def test_what_does_not_start_is_told(
    words: list[str], error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="t") as own:
        monkeypatch.setattr(tempfile, "tempdir", own)
        with pytest.raises(error, match=said):
            Machine(words)
        assert list(Path(own).iterdir()) == []


HOLD = """
import sys, time
from gdbext.qemu.machine import Machine
with Machine({argv!r}) as machine:
    machine.cont()
    print(machine.pid, machine.directory, flush=True)
    time.sleep(60)
"""


def test_our_sudden_death_takes_qemu_along() -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLD.format(argv=EMPTY)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    pid, directory = child.stdout.readline().split()
    child.kill()
    child.wait()
    wait(lambda: gone(int(pid)))
    wait(lambda: not Path(directory).exists())


def test_a_ctrl_c_is_not_qemus() -> None:
    """QEMU stands in a session of its own: the terminal's signals reach us alone."""
    with Machine(EMPTY) as machine:
        assert os.getsid(machine.pid) == machine.pid


def test_private_directory_goes_with_close() -> None:
    private = PrivateDirectory()
    (private.path / "file").write_text("x")
    private.close()
    private.close()
    assert not private.path.exists()
