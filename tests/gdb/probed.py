"""A bundled guest in a QEMU that was started as a user would, with the words of ``ctxwatch qemu-args``."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from gdbext.qemu import guests, probe
from gdbext.qemu.guests import Guest
from gdbext.sources.leash import leash


class Probed:
    """The guest `name`, stopped at its first instruction, its gdbstub on a UNIX socket. A context manager.

    more: further words for QEMU.  with_probe: whether the probe is loaded.
    """

    def __init__(self, name: str, *more: str, with_probe: bool = True) -> None:
        self.guest: Guest = guests.find(name)
        self.kernel = guests.build(self.guest)
        self.directory = Path(tempfile.mkdtemp(prefix="ctxwatch-test-"))
        self.gdb = self.directory / "gdb"
        self.ring = self.directory / "guest.ring"
        self.serial = self.directory / "serial"
        words = [*self.guest.command(self.kernel), *more, "-S", "-gdb", f"unix:{self.gdb},server=on,wait=off"]
        words += ["-display", "none", "-monitor", "none", "-serial", f"file:{self.serial}"]
        if with_probe:
            qemu = shutil.which(words[0])
            assert qemu is not None
            words += probe.plugin_args(probe.build(Path(qemu)), self.ring, watch=True)
            words += ["-qmp", f"unix:{self.ring.with_suffix('.qmp')},server=on,wait=off"]
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=leash())

    def __enter__(self) -> Probed:
        deadline = time.monotonic() + 60
        while not self.gdb.exists():
            assert self.process.poll() is None, "QEMU did not start"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def connect(self) -> tuple[str, str]:
        """The GDB commands that attach to it with symbols."""
        return f"file {self.kernel}", f"target remote {self.gdb}"

    @property
    def logs(self) -> list[Path]:
        """QEMU's logs, which are there as long as it is."""
        return list(self.directory.glob(f"{self.ring.name}.log*"))

    def printed(self, text: str, seconds: float = 150.0) -> None:
        """Wait until the guest printed `text`."""
        deadline = time.monotonic() + seconds
        while not self.serial.exists() or text not in self.serial.read_text("utf-8", "replace"):
            assert time.monotonic() < deadline, f"waited {seconds} s for {text!r}"
            time.sleep(0.02)
