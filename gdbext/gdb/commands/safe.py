"""``ctx safe``."""

from __future__ import annotations

import argparse
import contextlib
import time

import gdb

from gdbext.errors import CtxwatchError, UsageError
from gdbext.gdb import stepflags
from gdbext.gdb.declare import Command, argument
from gdbext.gdb.extension import Extension
from gdbext.gdb.needs import Needs
from gdbext.gdb.target import running


def run(extension: Extension, args: argparse.Namespace) -> None:
    """Show or switch the mode, or let one command through."""
    words = args.words
    if not words:
        _show(extension)
    elif words in (["on"], ["off"]):
        extension.safety.switch(words == ["on"])
        gdb.write(f"The safety mode is {words[0]}.\n")
    elif words[0] == "override" and len(words) > 1:
        command = args.text.partition("override")[2].strip()  # GDB's quotes and all
        with extension.safety.overridden(command):
            gdb.execute(command, True)
    elif words[0] == "irqs" and words[1:] in ([], ["on"], ["off"]):
        extension.check(Needs.GUEST)
        if words[1:]:
            extension.safety.irqs = stepflags.let_in(words[1] == "on")
        gdb.write(f"{stepflags.describe(stepflags.read())}\n")
    else:
        raise UsageError(f"ctx safe: what is {' '.join(words)!r}?", todo="help ctx safe tells more")


def _show(extension: Extension) -> None:
    safety = extension.safety
    gdb.write(f"The safety mode is {'on' if safety.on else 'off'}.\n")
    missing = safety.hooks.missing() if safety.on else []
    if missing:
        gdb.write(f"Not guarded, because their hooks were defined anew: {', '.join(missing)}.\n")
    if gdb.selected_inferior().pid and not running():
        place = extension.windows.here()
        if place is not None:
            where = place.window or place.opens
            how = "in a window" if place.window else "in front of a window"
            gdb.write(f"The guest stands {how} ({where.reason.value}).\n" if where else "It stands in no window.\n")
        with contextlib.suppress(CtxwatchError):  # no QEMU, or a GDB that lets no packets through
            gdb.write(f"{stepflags.describe(stepflags.read())}\n")
    for when, what in safety.history:
        gdb.write(f"  {time.strftime('%H:%M:%S', time.localtime(when))}  {what}\n")


COMMAND = Command(
    name="safe",
    summary="Show or switch the safety mode, which refuses steps and breakpoints where they are fatal.",
    text="""
        It is on from the start. In a window (see ctx windows) steps, finish, until, advance, jump and calls into the
        guest are refused, and so are breakpoints on an address in one, however the command arrives; a step that comes
        from outside stops at the window's edge. continue is always allowed, ctx skip runs past a window.

        off and on switch it; override COMMAND lets one command through; both are kept and shown. irqs on lets
        interrupts in while QEMU steps, which it otherwise holds back; irqs off holds them back again.
    """,
    example="""
ctx safe
ctx safe override stepi
ctx safe irqs on
""",
    run=run,
    arguments=(argument("words", "on, off, override COMMAND, or irqs on|off", nargs="...", metavar="WORDS"),),
    complete=lambda: ("on", "off", "override", "irqs"),
)
