"""A QEMU child: started stopped, talked to by QMP, its serial port read, and never left behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gdbext.errors import CtxwatchError, EnvironmentUnusable, GuestFailed, UsageError
from gdbext.qemu import child, command
from gdbext.qemu.command import Launch, SerialAt
from gdbext.qemu.console import Console
from gdbext.qemu.private import PrivateDirectory
from gdbext.qemu.qmp import Qmp, QmpClosed, QmpError

ARCHITECTURES: Final = {"x86_64": 64, "i386": 32}
"""QEMU targets that can be watched, with the widest code they run, in bits."""

COUNTED_TIME: Final = "shift=3"
"""For ``-icount``: eight nanoseconds an instruction. By the host's clock, a debugger's stop at each interrupt takes so
long that the next one is due before the interrupted code has moved."""

_RIP: Final = re.compile(r"\b[RE]IP=([0-9a-fA-F]+)")

_PATIENCE: Final = 3.0
"""Seconds QEMU gets to leave when asked, before it is killed: enough to flush a disk image."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a machine ended. ``how``: reset (a triple fault, or what may be one), restart (a reset that is none),
    shutdown, panic, quit, exit or killed."""

    how: str
    detail: str

    @property
    def died(self) -> bool:
        """True where the guest itself failed, not where it or somebody switched the machine off."""
        return self.how in ("reset", "panic")


_REASONS: Final = {
    "guest-reset": Ending("reset", "triple fault or reset"),
    "guest-shutdown": Ending("shutdown", "the guest switched the machine off"),
    "guest-panic": Ending("panic", "the guest reported a panic"),
}

_RESTART: Final = Ending("restart", "the guest reset the machine, by no triple fault")
_TRIPLE_FAULT: Final = b"Triple fault"
"""What QEMU's log says of one."""

_LAST: Final = 1 << 16
"""Bytes of the log in which it says so: the machine stops there."""


def which(program: str) -> Path:
    """The QEMU executable `program` stands for; raises EnvironmentUnusable when there is none."""
    found = shutil.which(program)
    if found is None:
        name = Path(program).name
        install = name in ("qemu-system-x86_64", "qemu-system-i386")
        todo = "run scripts/bootstrap, or install qemu-system-x86" if install else "name a qemu-system-x86_64"
        raise EnvironmentUnusable(f"no {program} here", todo=todo)
    return Path(found)


class Machine:
    """One QEMU, stopped before its first instruction until :meth:`cont`. A context manager; end it by :meth:`close`.

    argv: the command line (see :mod:`gdbext.qemu.command` for what is added).  gdbstub: open one for GDB.
    plugin: given the private directory, returns the words that load the probe.
    Raises UsageError, EnvironmentUnusable (no such QEMU) or GuestFailed (QEMU did not start).
    """

    def __init__(
        self, argv: Sequence[str], *, gdbstub: bool = False, plugin: Callable[[Path], Sequence[str]] | None = None
    ) -> None:
        self._ending: Ending | None = None
        self._close = contextlib.ExitStack()
        self._chatter: list[str] = []
        self.running = False
        self.program = which(argv[0])
        with contextlib.ExitStack() as stack:
            private = PrivateDirectory()
            stack.callback(private.close)
            self.directory = private.path
            words = plugin(self.directory) if plugin is not None else ()
            self.launch: Launch = command.complete(
                (str(self.program), *argv[1:]), self.directory, gdbstub=gdbstub, plugin=words
            )
            self._start(stack)
            self._close = stack.pop_all()

    def _start(self, stack: contextlib.ExitStack) -> None:
        listener = stack.enter_context(_listen(self.launch.serial_socket))
        try:
            self._process: Any = child.spawn(self.launch.argv)
        except OSError as error:
            raise EnvironmentUnusable(f"cannot run {self.program}", error.strerror or str(error)) from error
        stack.callback(self._stop_process)
        self._output = Console(self._process)
        try:
            self.qmp = Qmp(self.launch.qmp, alive=self._process_runs)
            stack.callback(self.qmp.close)
            self.arch = str(self.qmp.execute("query-target")["arch"])
            self.version = _version(self.qmp)
            self.accelerator = "kvm" if self.qmp.execute("query-kvm")["enabled"] else "tcg"
        except (EnvironmentUnusable, QmpClosed):
            raise self._not_started() from None
        if self.arch not in ARCHITECTURES:
            raise UsageError(f"{self.program.name} emulates {self.arch}", "only x86 guests can be watched")
        self.console = self._output if self.launch.serial is SerialAt.STDOUT else Console(_accept(listener))
        # What comes of the machine now is ours to hear; a leftover file would only be in the way.
        self.launch.serial_socket.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return int(self._process.pid)

    @property
    def gdb(self) -> Path | None:
        """The UNIX socket of the gdbstub, if one was asked for."""
        return self.launch.gdb_socket if self.launch.gdbstub else None

    def cont(self) -> None:
        """Let the guest run."""
        self.qmp.execute("cont")

    def stop(self) -> None:
        """Stop all vCPUs at the ends of their blocks."""
        self.qmp.execute("stop")

    def inject_nmi(self) -> None:
        """Send a non-maskable interrupt to the vCPUs."""
        self.qmp.execute("inject-nmi")

    def instruction_pointer(self, cpu: int) -> int:
        """RIP (EIP) of vCPU `cpu`, guest virtual; meaningful while the guest stands."""
        said = self.qmp.execute("human-monitor-command", {"command-line": "info registers", "cpu-index": cpu})
        found = _RIP.search(str(said))
        if found is None:
            raise GuestFailed(f"QEMU does not show the registers of CPU {cpu}")
        return int(found[1], 16)

    def open_gdbstub(self) -> Path:
        """Let GDB connect to the guest from now on; returns the UNIX socket."""
        self.qmp.hmp(f"gdbserver unix:{self.launch.gdb_socket},server=on,wait=off")
        return self.launch.gdb_socket

    def read_memory(self, address: int, length: int, cpu: int = 0) -> bytes:
        """Guest virtual memory as vCPU `cpu` maps it now; raises OSError where it is unmapped or QEMU is gone."""
        dump = self.directory / "memory"
        signed = address - (1 << 64) if address >> 63 else address  # QEMU before 9 takes a signed number
        try:
            self.qmp.execute("memsave", {"val": signed, "size": length, "filename": str(dump), "cpu-index": cpu})
            return dump.read_bytes()
        except QmpError as error:
            raise OSError(str(error)) from error
        finally:
            dump.unlink(missing_ok=True)

    def serial(self) -> list[str]:
        """Serial lines since the last call (raw: to be escaped before they are shown)."""
        lines = self.console.lines()
        if self.console is not self._output:
            self._chatter = (self._chatter + self._output.lines())[-20:]
        return lines

    def ending(self, patience: float = 0.0) -> Ending | None:
        """How the machine ended, or None while it lives. A guest that died is paused and can be looked at.

        patience: seconds to wait for the end of a QEMU whose sockets have closed: the process goes after them.
        """
        deadline = time.monotonic() + patience
        while True:
            while self._ending is None and (event := self.qmp.event(0)) is not None:
                self._note(event)
            if self._ending is None and not self._process_runs():
                self._ending = self._exit()
            if self._ending is not None or time.monotonic() >= deadline:
                return self._ending
            time.sleep(0.01)

    def _note(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "STOP":
                self.running = False
            case "RESUME":
                self.running = True
            case "GUEST_PANICKED":
                self._ending = _REASONS["guest-panic"]
            case "SHUTDOWN":
                reason = str(event.get("data", {}).get("reason", "unknown"))
                self._ending = _REASONS.get(reason) or Ending("quit", f"QEMU was asked to end ({reason})")
                if reason == "guest-reset" and self._no_triple_fault():
                    self._ending = _RESTART

    def _no_triple_fault(self) -> bool:
        """Whether QEMU would have put down a triple fault and has not."""
        log = self.launch.log
        try:
            return log is not None and not any(_TRIPLE_FAULT in _end_of(one) for one in _logs(log))
        except OSError:
            return False  # the log could not be made: nothing is known

    def _exit(self) -> Ending:
        status = int(self._process.poll())
        how, detail = "exit", f"QEMU ended with status {status}"
        if status < 0:
            how, detail = "killed", f"QEMU was killed by signal {-status}"
        said = self._last_words() if status >= 0 or status == -signal.SIGABRT else ""  # who aborts says why
        return Ending(how, f"{detail} ({said})" if said else detail)

    def _process_runs(self) -> bool:
        return self._process.poll() is None

    def _not_started(self) -> GuestFailed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.proc.wait(1.0)
        if self._process_runs():
            return GuestFailed("QEMU did not answer", "it hangs before its monitor is ready")
        status = int(self._process.poll())
        how = f"it was killed by signal {-status}" if status < 0 else f"exit status {status}"
        return GuestFailed("QEMU did not start", self._last_words() or how)

    def _last_words(self) -> str:
        """What QEMU said about its end: the last line in its own name, as advice may follow it, or the last of all."""
        while not self._output.closed and (lines := self._output.lines()):
            self._chatter += lines
        lines = [line for line in self._chatter + self._output.lines() if line.strip()]
        names = (f"{self.program}: ", f"{self.program.name}: ", "qemu: ")
        said = ([line for line in lines if line.startswith(names)] or lines or [""])[-1]
        for name in names:
            said = said.removeprefix(name)
        return said

    def _stop_process(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while self._process_runs() and time.monotonic() < deadline:
            self._output.lines()  # a full pipe would keep it from leaving
            time.sleep(0.01)
        self._process.close()

    def close(self) -> None:
        """End QEMU and remove its directory; idempotent."""
        if self._process_runs():
            with contextlib.suppress(CtxwatchError):
                self.qmp.execute("quit", timeout=1.0)
        self._close.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _logs(log: Path) -> list[Path]:
    """The files that `log` stands for, one for each thread where it has a ``%d``."""
    return list(log.parent.glob(log.name.replace("%d", "[0-9]*"))) if "%d" in log.name else [log]


def _end_of(log: Path) -> bytes:
    """The last of what is in `log`, of which the probe frees what it has read."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LAST))
        return file.read()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _accept(listener: socket.socket) -> Any:
    """The serial port as a pwntools tube. QEMU has connected before its monitor answers, if it does at all."""
    from pwnlib.tubes.sock import sock

    tube = sock()
    tube.rhost, tube.rport = "serial", 0  # pwntools names them in its log
    listener.settimeout(0)
    try:
        tube.sock = listener.accept()[0]
    except BlockingIOError:  # the command line sends its serial port elsewhere: an ended stream
        tube.sock, other = socket.socketpair()
        other.close()
    return tube


def _version(qmp: Qmp) -> str:
    numbers = qmp.execute("query-version")["qemu"]
    return f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}"
