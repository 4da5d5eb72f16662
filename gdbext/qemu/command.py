"""QEMU command lines: what ctxwatch must add to one, and what in it stands in the way."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from gdbext.errors import UsageError

# QEMU options without an argument (`qemu-system-x86_64 -help`, QEMU 7 to 11); every other one takes the next word.
_BARE: Final = frozenset((
    "h", "help", "version", "snapshot", "usb", "nographic", "full-screen", "win2k-hack", "no-fd-bootchk", "no-acpi",
    "no-hpet", "S", "s", "enable-kvm", "no-reboot", "no-shutdown", "daemonize", "only-migratable", "nodefaults",
    "no-user-config", "singlestep", "mem-prealloc", "preconfig", "enable-sync-profile", "no-quit", "semihosting",
    "sdl", "curses",
))  # fmt: skip
_DISPLAYS: Final = ("display", "nographic", "vnc", "spice", "sdl", "curses")


class SerialAt(Enum):
    """Where the guest's first serial port ends."""

    SOCKET = "a socket of ours"
    STDOUT = "QEMU's standard output"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class Launch:
    """A complete command line. ``added``: the words that ctxwatch appended."""

    argv: tuple[str, ...]
    added: tuple[str, ...]
    serial: SerialAt
    qmp: Path
    serial_socket: Path
    gdb_socket: Path
    gdbstub: bool
    """Whether a gdbstub is open at ``gdb_socket`` from the start."""
    log: Path | None
    """Where QEMU writes down triple faults, if it does; its QMP events do not tell them from other resets. A ``%d`` in
    the name stands for a thread's number."""


class Options:
    """The options of a QEMU command line by name, with their arguments in order ("" where there is none)."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.program = argv[0]
        self._options: dict[str, list[str]] = {}
        words = iter(argv[1:])
        for word in words:
            if word.startswith("-") and len(word) > 1:
                name = word.lstrip("-")
                self._options.setdefault(name, []).append("" if name in _BARE else next(words, ""))

    def __contains__(self, name: str) -> bool:
        return name in self._options

    def __getitem__(self, name: str) -> list[str]:
        return self._options.get(name, [])

    @property
    def accelerator(self) -> str:
        """The accelerator asked for, ``tcg`` when nothing is said."""
        if "enable-kvm" in self:
            return "kvm"
        asked = [value.split(",")[0].removeprefix("accel=") for value in self["accel"]]
        for machine in (*self["machine"], *self["M"]):
            asked += [part.removeprefix("accel=") for part in machine.split(",") if part.startswith("accel=")]
        return asked[0].split(":")[0] if asked else "tcg"

    @property
    def kernel(self) -> Path | None:
        """The argument of ``-kernel``."""
        return Path(self["kernel"][-1]) if "kernel" in self else None

    @property
    def serial(self) -> SerialAt:
        """Where the first serial port goes as the command line stands."""
        if "serial" in self:
            return SerialAt.STDOUT if self["serial"][0] in ("stdio", "mon:stdio") else SerialAt.ELSEWHERE
        if "nographic" in self:
            return SerialAt.STDOUT
        taken = "nodefaults" in self or any("serial" in device for device in self["device"])
        return SerialAt.ELSEWHERE if taken else SerialAt.SOCKET


def files(argv: Sequence[str]) -> list[Path]:
    """The files that are there among what the words of a command line name: kernels, disk images, logs."""
    names = [name for word in argv for name in (word, *re.split("[,=:]", word))]
    return [Path(name) for name in dict.fromkeys(names) if os.path.isfile(name)]


def complete(argv: Sequence[str], directory: Path, *, gdbstub: bool, plugin: Sequence[str] = ()) -> Launch:
    """Return `argv` with what ctxwatch needs: a stopped start, QMP, a serial port to read, death by pausing.

    directory: where the sockets will be.  gdbstub: whether GDB is to connect.  plugin: words that load the probe.
    Raises :class:`UsageError` for options that cannot go together with being watched.
    """
    options = Options(argv)
    _refuse(options, gdbstub)
    qmp, serial, gdb = directory / "qmp.sock", directory / "serial.sock", directory / "gdb.sock"
    added = ["-qmp", f"unix:{qmp},server=on,wait=off", "-action", "reboot=shutdown,shutdown=pause,panic=pause"]
    if "S" not in options:
        added.append("-S")
    if options.serial is SerialAt.SOCKET:
        added += ["-chardev", f"socket,id=ctxserial,path={serial}", "-serial", "chardev:ctxserial"]
    if not any(name in options for name in _DISPLAYS) and not _has_desktop():
        added += ["-display", "none"]
    if gdbstub:
        added += ["-gdb", f"unix:{gdb},server=on,wait=off"]
    logged, plugin = _split_log(plugin)
    if "d" in options or "D" in options or options.accelerator != "tcg":  # only TCG tells of triple faults
        logged = []
    elif not logged:
        logged = ["-d", "cpu_reset", "-D", str(directory / "resets.log")]
    added += [*logged, *plugin]
    log = Path(logged[-1]) if logged else None
    return Launch((*argv, *added), tuple(added), options.serial, qmp, serial, gdb, gdbstub, log)


def _split_log(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The log that the probe asks for, as ``-d ITEMS -D FILE``, and the rest of its words."""
    length = 4 if words[:1] == ["-d"] else 0
    return list(words[:length]), list(words[length:])


def _refuse(options: Options, gdbstub: bool) -> None:
    if "daemonize" in options:
        raise UsageError("QEMU's -daemonize cannot be used here", "ctxwatch waits for its own child", "leave it out")
    if gdbstub and ("s" in options or "gdb" in options):
        raise UsageError(
            "the command line opens a gdbstub (-s or -gdb) of its own",
            "QEMU has one, which is needed here",
            "leave it out (`ctxwatch run --via probe` does not need it)",
        )


def _has_desktop() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
