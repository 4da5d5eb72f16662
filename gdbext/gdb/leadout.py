"""Out of a window into which a step back has led, forward again.

The context that an ``iret`` or ``sysret`` resumes may be anywhere: no breakpoint can stand behind it, and a step back
over one ends inside the window. QEMU replays the same way out. A stop handler must not let the guest run; so the
prompt that follows does, or where there is none an event posted, and the next stop tells where that led.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

import gdb

from gdbext.errors import CtxwatchError
from gdbext.gdb import safetext
from gdbext.gdb.skip import Landing, ways_out
from gdbext.gdb.target import backwards, running
from gdbext.gdb.windows import Place, Windows

_STRETCHES: Final = 8
"""Runs forward at most: to the exit, to its target, and through windows that lie behind."""


class LeadOut:
    """``wanted``: a step back ended in a window and the guest is not out of it yet."""

    def __init__(self, windows: Windows, say: Callable[[str], None]) -> None:
        self._windows = windows
        self._say = say
        self._command = ""
        self._place: Place | None = None
        self._landings: list[Landing] = []
        self._turned = False
        self._left = 0

    @property
    def wanted(self) -> bool:
        """Whether :meth:`go` has something to do."""
        return self._place is not None and not self._landings

    def begin(self, command: str, place: Place) -> None:
        """`command`, a step back, has ended at `place` in a window: :meth:`go` is to be posted."""
        self._command, self._place, self._left = command, place, _STRETCHES

    def go(self) -> None:
        """Let the guest run forward, if it is to."""
        if not self.wanted:
            return
        place = self._windows.here() if not running() and gdb.selected_inferior().pid else None
        if place is None or place.window is None:
            self.forget()
            return
        try:
            goals = ways_out(self._windows, place.window, place.pc)
            thread = gdb.selected_thread().global_num
            self._landings = [Landing(goal, thread) for goal in goals]
            self._turned = backwards()
            if self._turned:
                gdb.execute("set exec-direction forward", to_string=True)
            gdb.execute("continue")
        except (CtxwatchError, gdb.error) as error:
            self.forget()
            self._say(f"{safetext.stop(place)} ({error})")

    def stopped(self, place: Place | None) -> bool:
        """The guest stands at `place`. True if that was a stop of ours: there is nothing else to tell."""
        began = self._place
        if began is None or not self._landings:
            return False
        reached = any(landing.is_valid() and landing.reached is not None for landing in self._landings)
        self._clear()
        self._left -= 1
        if reached and place is not None and place.window is not None and self._left:
            return True  # and on from there
        self._place = None
        if not reached or place is None or place.window is not None:
            return False
        self._say(safetext.led_out(self._command, began, place.pc))
        return True

    def forget(self) -> None:
        """The guest is gone, or stands where it is left."""
        self._clear()
        self._place = None

    def _clear(self) -> None:
        for landing in self._landings:
            with contextlib.suppress(gdb.error):
                if landing.is_valid():
                    landing.delete()
        self._landings = []
        if self._turned:
            self._turned = False
            with contextlib.suppress(gdb.error):
                gdb.execute("set exec-direction reverse", to_string=True)
