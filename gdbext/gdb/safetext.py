"""What the safety mode says: refusals, stops in and in front of windows, the list of windows."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

import gdb

from gdbext.code.disasm import Code
from gdbext.code.listing import text
from gdbext.code.windows import Stack, Stretch, Window
from gdbext.errors import CtxwatchError
from gdbext.gdb.guest import named
from gdbext.gdb.windows import Place

STEP: Final = "step"
RETURN: Final = "return"
BREAK: Final = "break"
CALL: Final = "call"

_INDENT: Final = len("  under TCG   ")
_NARROWEST: Final = 40

_CONSEQUENCES: Final = {
    STEP: (
        "under TCG   QEMU steps with interrupts held back (ctx safe irqs), so that the code runs otherwise than alone",
        "under KVM   the step is made with the trap flag, which syscall and pushf copy and an NMI is not held back by",
        "in-guest    a debugger in the guest takes the #DB right here, {where}: a double or triple fault",
    ),
    RETURN: (
        "under TCG   GDB takes RIP and RSP from where RSP points to, and there is no frame {where}: both are lost",
        "under KVM   the same",
        "in-guest    the same, and the debugger stands {where} meanwhile",
    ),
    BREAK: (
        "under TCG   the stop itself does no harm; what you look at and do there meets half-switched state",
        "under KVM   a breakpoint is an int3 in the guest's code, and there are four hardware breakpoints in all",
        "in-guest    a debugger in the guest takes the #BP or #DB right there, {where}: a double or triple fault",
    ),
    CALL: (
        "under TCG   GDB writes a return address below RSP and runs the function {where}",
        "under KVM   the same",
        "in-guest    the same, and the debugger's own stop at the end comes {where} too",
    ),
}


class Refused(CtxwatchError):
    """A command that the safety mode refuses. ``details``: lines that belong under the one that ``str`` gives."""

    def __init__(self, what: str, why: str, todo: str, details: Sequence[str]) -> None:
        super().__init__(what, why, todo)
        self.details = tuple(details)

    def whole(self, columns: int | None = None) -> str:
        """The line and the details. columns: of the terminal, so that no word is cut; None leaves lines as they are."""
        lines = [str(self), *(f"  {line}" for line in self.details)]
        if columns is not None:
            lines = [filled(lines[0], columns, 4), *(filled(line, columns, _INDENT) for line in lines[1:])]
        return "\n".join(lines)


def columns() -> int | None:
    """Of the terminal that a person sees GDB on; None where it writes elsewhere, or the user wants lines whole."""
    width = gdb.parameter("width")
    return width - 1 if os.isatty(1) and width and width >= _NARROWEST else None


def filled(line: str, columns: int, indent: int) -> str:
    """`line` in lines of so many columns that cut no word; those after the first are indented."""
    return textwrap.fill(line, columns, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def step(command: str, place: Place, back: bool) -> Refused:
    """A step from inside a window, by the instruction that opens one, or, backwards, from the first one after it."""
    window = place.window or (place.behind if back else place.opens)
    assert window is not None
    if place.window is not None:
        why = f"{named(place.pc)} is in a window ({window.reason.value})"
        details = ["half-switched now: " + state(place)]
        stretch = window.at(place.pc)
    elif back:
        why = f"{named(place.pc)} is the first instruction after a window ({window.reason.value})"
        return Refused(
            f"{command} refused",
            why,
            f"reverse-continue runs back past it; ctx safe override {command} does it all the same",
            [f"window: {window.why}"],
        )
    else:
        why = f"the instruction at {named(place.pc)} opens a window ({window.reason.value})"
        details = ["half-switched after it: " + _described(window.stretches[0])]
        stretch = window.stretches[0]
    return Refused(
        f"{command} refused",
        why,
        f"ctx skip runs to the first instruction after it; ctx safe override {command} does it all the same",
        [f"window: {window.why}", *details, *_consequences(RETURN if command == RETURN else STEP, stretch)],
    )


def call(place: Place) -> Refused:
    """A call into the guest from inside a window."""
    window = place.window
    assert window is not None
    return Refused(
        "calls into the guest are refused",
        f"{named(place.pc)} is in a window ({window.reason.value})",
        "ctx skip runs to the first instruction after it; ctx safe override print ... calls all the same",
        [
            f"window: {window.why}",
            f"half-switched now: {state(place)}",
            *_consequences(CALL, window.at(place.pc)),
        ],
    )


def breakpoint_in(number: int, address: int, window: Window, nearest: int | None) -> Refused:
    """A breakpoint at `address`, which lies in `window`; `nearest`: the nearest address that is safe."""
    offer = f"the nearest safe address is *{named(nearest)}; " if nearest is not None else ""
    return Refused(
        f"breakpoint {number} refused and deleted",
        f"{named(address)} is in a window ({window.reason.value})",
        f"{offer}ctx safe override break ... sets it all the same",
        [
            f"window: {window.why}",
            f"half-switched there: {window.state_at(address)}",
            *_consequences(BREAK, window.at(address)),
        ],
    )


def jump(address: int, window: Window, back: int) -> Refused:
    """A jump into `window` at `address`, made undone."""
    return Refused(
        "jump refused",
        f"{named(address)} is in a window ({window.reason.value}), and what is half-switched there is not so here",
        f"nothing was run, and the guest stands at {named(back)} again",
        [f"window: {window.why}", f"half-switched there: {window.state_at(address)}"],
    )


def state(place: Place) -> str:
    """What is half-switched at `place`, with what the count of swapgs says."""
    window = place.window
    stretch = window.at(place.pc) if window is not None else None
    if stretch is None:
        return "nothing"
    if place.parity is None:
        return _described(stretch)
    gs = "kernel" if place.parity else "user"
    return f"kernel code, {stretch.stack.value}, {gs} GS active (by count of swapgs)"


def stop(place: Place) -> str:
    """The line for a stop inside a window."""
    assert place.window is not None
    return (
        f"{named(place.pc)} is in a window ({place.window.reason.value}): {state(place)}; "
        "steps, breakpoints and calls into the guest are refused here, ctx skip runs past it"
    )


def edge(address: int, window: Window, code: Code | None) -> str:
    """The line for a stop in front of a window."""
    inside = window.at(address) is not None
    insn = code.insn(address) if code is not None else None
    first = f": {text(insn)}" if insn is not None else ""
    how = "is the window's first instruction" if inside else "opens it"
    return (
        f"stopped at the edge of a window ({window.reason.value}, {window.why}): "
        f"{named(address)}{first} {how} and was not executed; ctx skip runs past the window"
    )


def back_edge(address: int, window: Window) -> str:
    """The line for a stop behind a window that a step back came to, or at the exit with which it ends."""
    how = "it ends with" if window.at(address) is not None else "it ends before"
    return (
        f"stopped at the edge of a window ({window.reason.value}, {window.why}): {how} {named(address)}; "
        "reverse-continue runs back past the window"
    )


def led_out(command: str, place: Place, arrived: int) -> str:
    """The line for a step back that ended inside a window, from where the guest was run forward again."""
    assert place.window is not None
    return (
        f"stopped at the edge of a window ({place.window.reason.value}, {place.window.why}): {command} led to "
        f"{named(place.pc)} inside it, from where the guest was run forward again to {named(arrived)}; "
        "reverse-continue runs back past the window"
    )


def _described(stretch: Stretch) -> str:
    uncertain = "" if stretch.certain else " (if the context came from or goes to user mode)"
    gs = "user" if stretch.user_gs else "kernel"
    return f"kernel code, {stretch.stack.value}, {gs} GS active{uncertain}"


def _consequences(action: str, stretch: Stretch | None) -> Iterator[str]:
    where = "at CPL 0 with half-switched state"
    if stretch is not None:
        parts = ["on the user's stack"] if stretch.stack is Stack.USER else []
        parts += ["on the stack its handler stands on"] if stretch.stack is Stack.IST else []
        parts += ["with the user's GS base"] if stretch.user_gs else []
        where = f"at CPL 0 {' and '.join(parts)}" if parts else where
    for line in _CONSEQUENCES[action]:
        yield line.format(where=where)


def listed(index: int, window: Window, code: Code | None, most: int) -> Iterator[str]:
    """`window` for ``ctx windows``; `most`: instructions shown."""
    first = min(stretch.start for stretch in window.stretches)
    end = max(stretch.end for stretch in window.stretches)
    yield f"{index}. {window.reason.value}  {first:#x}-{end:#x}  {named(first)}"
    yield f"   {window.why}"
    left = most
    for stretch in window.stretches:
        if left <= 0:
            break
        yield f"   {_described(stretch)}"
        for line in _instructions(stretch, code, left):
            left -= 1
            yield f"     {line}"
    stretches = sum(stretch.end - stretch.start for stretch in window.stretches)
    if left <= 0:
        yield f"   ... in all {stretches} bytes in {len(window.stretches)} stretches (ctx windows {index} shows all)"
    for title, found in (("opened by", window.opened_by), ("ends with", window.exits), ("lands at", window.landings)):
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 and left <= 0 else ""
            shown = found[:3] if more else found
            yield f"   {title}  {', '.join(named(address) for address in shown)}{more}"


def _instructions(stretch: Stretch, code: Code | None, most: int) -> Iterator[str]:
    address = stretch.start
    while code is not None and address < stretch.end and most > 0:
        insn = code.insn(address)
        if insn is None:
            return
        yield f"{address:#x}  {text(insn)}"
        most -= 1
        address = insn.end
