"""What is read out of a QEMU command line, and what is added to it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from gdbext.errors import UsageError
from gdbext.qemu.command import Options, SerialAt, complete, files

DIRECTORY = Path("/run/private")


def options(line: str) -> Options:
    return Options(shlex.split("qemu-system-x86_64 " + line))


@pytest.mark.parametrize(
    ("line", "accelerator"),
    [
        ("", "tcg"),
        ("-enable-kvm", "kvm"),
        ("-accel kvm", "kvm"),
        ("--accel tcg,thread=single", "tcg"),
        ("-machine q35,accel=kvm:tcg", "kvm"),
        ("-M pc", "tcg"),
        ("-append -enable-kvm", "tcg"),  # an argument, not an option
    ],
)
def test_accelerator(line: str, accelerator: str) -> None:
    assert options(line).accelerator == accelerator


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("", SerialAt.SOCKET),
        ("-nographic", SerialAt.STDOUT),
        ("-serial stdio", SerialAt.STDOUT),
        ("-serial mon:stdio -serial null", SerialAt.STDOUT),
        ("-serial file:x", SerialAt.ELSEWHERE),
        ("-device isa-serial,chardev=c", SerialAt.ELSEWHERE),
        ("-nodefaults", SerialAt.ELSEWHERE),
    ],
)
def test_serial(line: str, where: SerialAt) -> None:
    assert options(line).serial is where


def test_kernel() -> None:
    assert options("-m 64M -kernel a/b").kernel == Path("a/b")
    assert options("-m 64M").kernel is None


def launch(line: str, *, gdbstub: bool = False) -> list[str]:
    return list(complete(shlex.split("qemu-system-x86_64 " + line), DIRECTORY, gdbstub=gdbstub).added)


def test_what_is_added() -> None:
    added = launch("-kernel k")
    assert "-S" in added
    assert "unix:/run/private/qmp.sock,server=on,wait=off" in added
    assert added[added.index("-serial") + 1] == "chardev:ctxserial"
    assert added[added.index("-display") + 1] == "none"
    assert "-gdb" not in added


def test_what_is_there_is_left_alone() -> None:
    added = launch("-S -nographic")
    assert "-S" not in added
    assert "-serial" not in added
    assert "-display" not in added


def test_a_desktop_keeps_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    assert "-display" not in launch("")


def test_gdbstub() -> None:
    added = launch("", gdbstub=True)
    assert added[added.index("-gdb") + 1] == "unix:/run/private/gdb.sock,server=on,wait=off"


@pytest.mark.parametrize("line", ["-s", "-gdb tcp::1234"])
def test_one_gdbstub_only(line: str) -> None:
    with pytest.raises(UsageError, match="gdbstub"):
        launch(line, gdbstub=True)
    assert launch(line)


def test_daemonize_is_refused() -> None:
    with pytest.raises(UsageError, match="daemonize"):
        launch("-daemonize")


def test_files(tmp_path: Path) -> None:
    kernel, disk, log = (tmp_path / name for name in ("kernel", "disk", "log"))
    for path in (kernel, disk, log):
        path.touch()
    words = shlex.split(
        f"-kernel {kernel} -drive if=none,file={disk} -serial file:{log} -initrd {tmp_path}/none -m 64M"
    )
    assert files(words) == [kernel, disk, log]
