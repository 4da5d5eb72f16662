"""Breakpoints in front of windows, there while a guarded command runs the guest.

They are on for the vCPU that steps alone, and only while it steps: where GDB lets it run (over a call, to a function's
end) it passes windows as ``continue`` does, unhurt. GDB tells neither when it does so nor where to; but the
breakpoints it sets for itself can be looked at.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Final, NamedTuple

import gdb

_ROW: Final = re.compile(r"^0\s+(step resume|until|finish|longjmp resume)\s+\w+\s+[yn]\s+(0x[0-9a-f]+)", re.MULTILINE)


class Own(NamedTuple):
    """Addresses (guest virtual) of GDB's own temporary breakpoints: where the command is to end, and where stepping
    goes on."""

    ends: frozenset[int]
    steps_on: frozenset[int]


def own() -> Own:
    """GDB's own temporary breakpoints now."""
    shown = str(gdb.execute("maint info breakpoints", to_string=True))
    rows = [(kind, int(address, 16)) for kind, address in _ROW.findall(shown)]
    ends = frozenset(address for kind, address in rows if kind in ("until", "finish"))
    return Own(ends, frozenset(address for _, address in rows) - ends)


class Edge(gdb.Breakpoint):  # type: ignore[misc]  # GDB's classes have no types
    """An internal breakpoint of one vCPU; ``reached`` says whether it stops the guest."""

    def __init__(self, address: int, thread: int, reached: Callable[[int], bool]) -> None:
        super().__init__(f"*{address:#x}", gdb.BP_BREAKPOINT, internal=True)
        self.silent = True
        self.thread = thread
        self.address = address
        self._reached = reached

    def stop(self) -> bool:
        """Called by GDB at the breakpoint."""
        return self._reached(self.address)


class Edges:
    """The edges armed now. ``hit``: the one at which the guest was stopped, until :meth:`disarm`."""

    def __init__(self) -> None:
        self.hit: int | None = None
        self._edges: list[Edge] = []
        self._sentinels: dict[int, Edge] = {}
        self._thread = 0

    @property
    def armed(self) -> bool:
        """Whether there are any."""
        return bool(self._edges)

    def arm(self, addresses: list[int], thread: int, always: bool) -> None:
        """Stop the vCPU of GDB's thread `thread` at `addresses`. always: also where GDB lets it run."""
        self._thread = thread
        reached = self._stop if always else self._stop_if_stepping
        self._edges = [Edge(address, thread, reached) for address in addresses]

    def disarm(self) -> None:
        """Remove them all; the guest stands still or is gone."""
        for edge in [*self._edges, *self._sentinels.values()]:
            with contextlib.suppress(gdb.error):  # the target went away in between
                if edge.is_valid():
                    edge.delete()
        self._edges, self._sentinels = [], {}
        self.hit = None

    def _stop(self, address: int) -> bool:
        self.hit = address
        return True

    def _stop_if_stepping(self, address: int) -> bool:
        resumes = own().steps_on
        if not resumes:
            return self._stop(address)
        # GDB lets the vCPU run up to these: until then the edges would only cost time.
        self._enable(False)
        for resume in resumes - self._sentinels.keys():
            self._sentinels[resume] = Edge(resume, self._thread, self._steps_on)
        return False

    def _steps_on(self, address: int) -> bool:
        self._enable(True)
        return False

    def _enable(self, on: bool) -> None:
        for edge in self._edges:
            edge.enabled = on
