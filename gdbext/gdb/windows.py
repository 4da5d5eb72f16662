"""Which windows the guest has, and whether a vCPU stands in one: with or without a watch.

While a watch follows the guest its machine is asked; otherwise a survey of the guest as it stands is made when
somebody wants to know, and kept for as long as the connection. Until then nothing of the guest is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gdb

from gdbext.code.edges import edges, opened_at
from gdbext.code.paths import Gateway
from gdbext.code.windows import Window, find
from gdbext.errors import CtxwatchError
from gdbext.gdb.machine import Machine
from gdbext.gdb.survey import Survey
from gdbext.gdb.target import Target
from gdbext.gdb.watch import Watch
from gdbext.gdb.watching import Watching

_EXCEPTIONS: Final = 32
"""Vectors below it are the CPU's own (Intel SDM vol. 3A, 6.2); a step meets them with interrupts held back too."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a vCPU stands. ``window``: the one `pc` (guest virtual) lies in; outside, ``opens``: the one that the
    instruction there opens, and ``behind``: the one that a step back leads into. ``parity``: True while the kernel's
    GS base is active, None if that is not known."""

    pc: int
    window: Window | None
    opens: Window | None
    behind: Window | None
    parity: bool | None


class Windows:
    """The windows of the guest that GDB is connected to.

    watch: gives the watch at hand, if there is one.  kernel: gives the image of the kernel, if GDB was given one.
    """

    def __init__(self, watch: Callable[[], Watching | None], kernel: Callable[[], Path | None]) -> None:
        self._watch = watch
        self._kernel = kernel
        self._survey: Survey | None = None
        self._fresh = False

    def forget(self) -> None:
        """The guest goes on: what it has may change."""
        self._fresh = False

    def machine(self) -> Machine | None:
        """What is known of the guest's entries now; None without a guest, or while it has no interrupt table. The
        guest must stand still."""
        watch = self._watch()
        if isinstance(watch, Watch):
            return watch.machine if watch.armed else None
        connection = getattr(gdb.selected_inferior(), "connection", None)
        if self._survey is None or self._survey.target.connection is not connection:
            self._survey = self._begin()
            self._fresh = False
        if self._survey is None:
            return None
        if not self._fresh:
            try:
                self._survey.windows()
            except (gdb.error, OSError):
                return None  # the connection is going
            self._fresh = True
        return self._survey.machine if self._survey.machine.reach is not None else None

    def _begin(self) -> Survey | None:
        try:
            return Survey(Target(), self._kernel())
        except CtxwatchError:
            return None

    def all(self) -> list[Window]:
        """The windows known now, none if the guest has no table. The guest must stand still."""
        machine = self.machine()
        return machine.windows if machine is not None else []

    def known(self) -> list[Window]:
        """The windows as they were when last looked up; for a guest that runs."""
        machine = self._known()
        return machine.windows if machine is not None else []

    def calls(self) -> Mapping[int, int]:
        """Call instruction → target in the code of :meth:`known`."""
        machine = self._known()
        return machine.reach.calls if machine is not None and machine.reach is not None else {}

    def _known(self) -> Machine | None:
        watch, survey = self._watch(), self._survey
        return watch.machine if isinstance(watch, Watch) else survey.machine if survey is not None else None

    def parity(self, pc: int) -> bool | None:
        """Which GS base is active on the selected vCPU, which stands at `pc`, by count: True the kernel's, None if it
        was not counted. A watch counts a ``swapgs`` when it is about to run: of one at `pc` nothing is said."""
        watch, machine = self._watch(), self.machine()
        if watch is None or (machine is not None and pc in (machine.reach.swapgs if machine.reach else ())):
            return None
        with watch.held():
            return watch.gs.parity(Target.cpu())

    def here(self) -> Place | None:
        """Where the selected vCPU stands; None where that, or the guest's windows, cannot be told."""
        try:
            pc = int(gdb.newest_frame().pc())
        except gdb.error:
            return None
        found, parity = self.all(), self.parity(pc)
        window = find(found, pc, None if parity is None else not parity)
        if window is not None:
            return Place(pc, window, None, None, parity)
        behind = next((one for one in found if pc in one.landings), None)
        return Place(pc, None, opened_at(found, pc), behind, parity)

    def edges(self, irqs: bool) -> dict[int, Window]:
        """Where a step that comes from outside must stop (see gdbext.code.edges), with the entries that a step can
        lead to. irqs: whether interrupts are let in while stepping."""
        machine = self.machine()
        if machine is None or machine.reach is None or machine.code is None:
            return {}
        stepped = set()
        for handler in machine.tables.handlers():
            if irqs or handler.callable or min(handler.vectors) < _EXCEPTIONS:
                stepped.add(handler.address)
        stepped |= {e.address for e in machine.reach.entries if e.gateway is not Gateway.INTERRUPT}
        return edges(machine.windows, machine.code, machine.reach, stepped)

    def back_edges(self) -> dict[int, Window]:
        """Where a step back that comes from outside must stop: the first instructions after windows, and, as the
        context that an exit resumes may be anywhere, the exits themselves."""
        return {address: window for window in self.all() for address in (*window.landings, *window.exits)}
