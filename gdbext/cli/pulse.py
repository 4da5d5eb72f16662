"""A guest's pulse: the interrupts that show it lives, and the NMIs that are injected among them."""

from __future__ import annotations

import contextlib
import time
from typing import Final

from gdbext.events.row import Batch, How, Kind
from gdbext.qemu.machine import Machine
from gdbext.qemu.qmp import QmpError

_UNPACKING: Final = 6
"""Times as long may pass before the first interrupt."""
_FIRST_NMI_AFTER: Final = 50
"""Entries seen before NMIs are injected: a kernel without an IDT would die of the first."""
_NMI_EVERY_ENTRIES: Final = 10
"""Entries between two NMIs at least: a slow source must not spend all of the guest's time in NMIs."""


class Pulse:
    """Tells whether a guest that a timer interrupts all the time hangs.

    silence: seconds without an interrupt after which it does.
    """

    def __init__(self, silence: float) -> None:
        self._silence = silence
        self._ticking = False
        """It was interrupted once: from then on, exceptions and system calls alone are no sign of life."""
        self._last = time.monotonic()

    def feed(self, batch: Batch) -> None:
        """Note the signs of life among events that were just read."""
        ticks = (batch["kind"] == Kind.ENTRY) & ((batch["how"] == How.INTERRUPT) | (batch["how"] == How.UNKNOWN))
        self._ticking = self._ticking or bool(ticks.any())
        if not self._ticking or ticks.any():
            self._last = time.monotonic()

    @property
    def silence(self) -> float:
        """Seconds without an interrupt after which it hangs: more before the first, while a kernel unpacks itself."""
        return self._silence if self._ticking else self._silence * _UNPACKING

    @property
    def stopped(self) -> bool:
        """Whether it has been silent for that long."""
        return time.monotonic() - self._last > self.silence


class Nmis:
    """NMIs into `machine`, one every so many milliseconds at most; 0: none."""

    def __init__(self, machine: Machine, milliseconds: int) -> None:
        self._machine = machine
        self._seconds = milliseconds / 1000
        self._not_before = 0.0, _FIRST_NMI_AFTER
        """This time, nor so many entries."""

    def inject(self, entries: int) -> None:
        """Inject one if it is due; `entries`: seen so far."""
        if not self._seconds or entries < self._not_before[1] or not self._machine.running:
            return
        now = time.monotonic()
        if now >= self._not_before[0]:
            with contextlib.suppress(QmpError):  # it may have died this moment, which is told elsewhere
                self._machine.inject_nmi()
            self._not_before = now + self._seconds, entries + _NMI_EVERY_ENTRIES
