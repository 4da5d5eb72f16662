"""What an event costs where the guest is stopped for it: through GDB's breakpoints, ours and a user's script."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

from gdbext.cli import feeds, running, session
from gdbext.errors import EnvironmentUnusable, GuestFailed
from gdbext.qemu import guests, images
from gdbext.qemu.machine import Machine
from gdbext.rules.engine import Counts
from gdbext.rules.finding import Finding

SCRIPT: Final = Path(__file__).with_name("user_script.py")
LINUX: Final = "linux-amd64-nokaslr"
"""The kernel lies where its symbols say."""
OURS: Final = "clean-nrk"
"""A kernel that is an ELF file, which the gdbstub source needs before the guest has loaded an interrupt table."""
SYMBOLS: Final = (
    "asm_sysvec_apic_timer_interrupt",
    "asm_exc_page_fault",
    "entry_SYSCALL_64",
    "swapgs_restore_regs_and_return_to_usermode",
    "restore_regs_and_return_to_kernel",
)
"""Where a user who knows the kernel would look: entries and ways out."""
_SAID: Final = re.compile(r"bench: (\d+) stops in ([0-9.]+) seconds")


def by_user_script(seconds: float) -> float:
    """Seconds an event costs with a plain GDB Python script, over `seconds` of it."""
    guest = guests.find(LINUX)
    kernel = guests.build(guest)
    symbols = images.load(kernel).symbols
    symbols.slide = 0
    addresses = [address for name in SYMBOLS if (address := symbols.address(name)) is not None]
    if len(addresses) < 3:
        raise EnvironmentUnusable(f"the symbols of {kernel} lack the handlers", f"of {', '.join(SYMBOLS)}")
    with Machine(guest.command(kernel), gdbstub=True) as machine:
        names = {"SOCKET": machine.gdb, "ADDRESSES": " ".join(map(hex, addresses)), "SECONDS": seconds}
        done = subprocess.run(
            ["gdb", "-nx", "-batch", "-x", str(SCRIPT)],
            env=os.environ | {f"BENCH_{name}": str(value) for name, value in names.items()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds + 120,
            check=False,
        )
    said = _SAID.search(done.stdout)
    if said is None or int(said[1]) < 10:
        raise GuestFailed("the GDB script saw nothing", (done.stderr or done.stdout).strip()[-200:])
    return float(said[2]) / int(said[1])


def by_gdbstub_source(seconds: float) -> float:
    """Seconds an event costs through ``ctxwatch run --via gdbstub``, over `seconds` from its first event on."""
    guest = guests.find(OURS)
    kernel = guests.build(guest)
    image = images.load(kernel)
    subject = session.Subject(guest.name, tuple(guest.command(kernel)), image)
    view = _Pace(seconds)
    feed = feeds.GdbstubFeed(feeds.Wishes(kernel=kernel))
    knowledge = running.knowledge_of(guest.profile or running.GENERIC, image, view.note)
    session.watch(subject, knowledge, session.Options(timeout=seconds + 60), feed, view)
    return view.cost


class _Pace:
    """Counts events from the first one on, for a while, then ends the run as Ctrl-C does."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first: tuple[float, int] | None = None
        self.cost = 0.0

    def progress(self, counts: Counts, _seconds: float) -> None:
        """Called all the time."""
        events, now = counts.entries + counts.exits + counts.swapgs, time.monotonic()
        if self._first is None and events:
            self._first = now, events
        if self._first is not None and not self.cost and now - self._first[0] > self._seconds:
            self.cost = (now - self._first[0]) / max(events - self._first[1], 1)
            signal.raise_signal(signal.SIGINT)

    def note(self, text: str) -> None:
        """Not of interest."""

    def detail(self, text: str) -> None:
        """Not of interest."""

    def serial(self, line: str) -> None:
        """Not of interest."""

    def finding(self, finding: Finding) -> None:
        """Not of interest."""

    def hold(self, invitation: str) -> None:
        """Never asked for."""
