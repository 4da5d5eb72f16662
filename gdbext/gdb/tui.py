"""The window ``ctx`` of GDB's TUI: state, windows near the instruction pointer, findings.

``layout ctx`` shows it below the disassembly, ``layout ctx-src`` below the source. Both are layouts beside GDB's own;
nothing is shown before one is chosen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import gdb

from gdbext.code.windows import Stretch, Window
from gdbext.errors import CtxwatchError, printable
from gdbext.gdb import text
from gdbext.gdb.extension import Extension
from gdbext.gdb.functions import parity_name
from gdbext.gdb.guest import named, symbol
from gdbext.gdb.stops import commands_follow
from gdbext.gdb.target import Target, running
from gdbext.gdb.windows import Place

NAME: Final = "ctx"
LAYOUTS: Final = {
    "ctx": "asm 3 ctx 2 status 0 cmd 2",
    "ctx-src": "src 3 ctx 2 status 0 cmd 2",
}
_NEAR: Final = 3
"""Windows shown, the nearest ones."""


def lines(extension: Extension) -> Iterator[str]:
    """What the window shows, line by line, for as far as it reaches."""
    if extension.walked is not None:
        yield "  ".join(extension.walked.summary())
        return
    state, place = _state(extension)
    yield state
    watch = extension.watch
    if watch is None:
        yield "not watching: ctx watch begins"
    elif watch.failed is not None:
        yield f"the watch failed: {watch.failed}"
    else:
        counts = extension.counts
        if counts is not None:
            yield (
                f"watching: {counts.entries} entries, {counts.exits} exits, {counts.swapgs} swapgs, "
                f"{counts.identical} identical"
            )
        if watch.judging is not None and watch.judging.recording is not None:
            yield f"recording to {watch.judging.recording}"
    yield from _windows(extension.windows.known(), place)
    found = extension.findings
    yield f"findings: {len(found)}"
    for finding in reversed(found):
        yield f"  {text.line(finding)}"


def _state(extension: Extension) -> tuple[str, Place | None]:
    """The first line, and where the guest stands, None if that cannot be told."""
    thread = gdb.selected_thread()
    if thread is None or not thread.is_valid():
        return "no guest", None
    watch = extension.watch
    cpu = Target.cpu()
    parity = watch.gs.parity(cpu) if watch is not None else None
    if running():
        return f"running  CPU {cpu}  GS {parity_name(parity)}", None
    place = extension.windows.here()
    cpl = int(gdb.newest_frame().read_register("cs")) & 3
    state = f"stopped  CPU {cpu}  CPL {cpl}  GS {parity_name(False if cpl == 3 else parity)}"
    if place is None or cpl == 3:
        return state, place
    if place.window is not None:
        return f"{state}  IN A WINDOW ({place.window.reason.value}): {place.window.state_at(place.pc)}", place
    return f"{state}  in no window" if extension.windows.known() else state, place


def _windows(windows: list[Window], place: Place | None) -> Iterator[str]:
    """The windows nearest to where the guest stands."""
    if place is None or not windows:
        return
    pc = place.pc
    stretches = [(stretch, window) for window in windows for stretch in window.stretches]
    yield f"windows near {named(pc)}"
    for stretch, window in sorted(stretches, key=lambda one: (_distance(one[0], pc), one[0].start))[:_NEAR]:
        mark = ">" if stretch.start <= pc < stretch.end and window is place.window else " "
        name = symbol(stretch.start)
        where = f"{stretch.start:#x}..{stretch.end & 0xFFFF:04x}" + (f" <{name}>" if name else "")
        half = f"{stretch.stack.value}, {'user' if stretch.user_gs else 'kernel'} GS"
        yield f"{mark} {window.reason.value:<15} {where}  {half}" + ("" if stretch.certain else " ?")


def _distance(stretch: Stretch, pc: int) -> int:
    """Bytes from `pc` to the stretch."""
    if stretch.start <= pc < stretch.end:
        return 0
    return min(abs(pc - stretch.start), abs(pc - stretch.end + 1))


class Pane:
    """One window on the terminal; GDB makes it when a layout shows it and calls its methods."""

    def __init__(self, tui: Any, extension: Extension, panes: set[Pane]) -> None:
        self._tui = tui
        self._extension = extension
        self._panes = panes
        self._top = 0
        tui.title = NAME
        panes.add(self)

    def render(self) -> None:
        """Draw it."""
        if not self._tui.is_valid():
            self._panes.discard(self)
            return
        try:
            shown = [printable(line) for line in lines(self._extension)]
        except (gdb.error, CtxwatchError, OSError) as error:
            shown = [printable(str(error))]
        self._top = max(0, min(self._top, len(shown) - 1))
        width = self._tui.width - 1  # a full line wraps
        self._tui.write("\n".join(line[:width] for line in shown[self._top :][: self._tui.height]), True)

    def vscroll(self, count: int) -> None:
        """Scroll by lines."""
        self._top += count
        self.render()

    def close(self) -> None:
        """It is no longer shown."""
        self._panes.discard(self)


def register_tui(extension: Extension) -> None:
    """Add the window and its layouts to this GDB, if it has a TUI."""
    if not hasattr(gdb, "register_window_type"):
        return
    panes: set[Pane] = set()
    gdb.register_window_type(NAME, lambda tui: Pane(tui, extension, panes))
    for name, windows in LAYOUTS.items():
        with contextlib.suppress(gdb.error):  # the user has one of that name
            gdb.execute(f"tui new-layout {name} {windows}", to_string=True)

    def refresh(event: Any = None) -> None:
        if commands_follow(event):
            return  # a prompt comes too
        for pane in list(panes):
            pane.render()

    for event in ("before_prompt", "stop", "cont", "exited"):
        getattr(gdb.events, event).connect(refresh)
