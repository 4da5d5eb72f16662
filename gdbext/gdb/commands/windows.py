"""``ctx windows``."""

from __future__ import annotations

import argparse
import sys
from typing import Final

import gdb

from gdbext.code.windows import Reason
from gdbext.errors import CtxwatchError, UsageError
from gdbext.gdb import safetext
from gdbext.gdb.declare import Command, argument
from gdbext.gdb.extension import Extension
from gdbext.gdb.needs import Needs

_BRIEF: Final = 8
"""Instructions shown of each window in a list of several."""


def run(extension: Extension, args: argparse.Namespace) -> None:
    """List them all, those of a kind, or one by number or address."""
    machine = extension.windows.machine()
    if machine is None:
        raise CtxwatchError("no windows are known", "the guest has loaded no interrupt table yet", "let it boot")
    found = machine.windows
    if not found:
        gdb.write("No windows: no entry or exit found swaps GS or switches stacks, and no handler has an IST stack.\n")
        return
    chosen = list(enumerate(found, 1))
    if args.which:
        chosen = [(index, window) for index, window in chosen if window.reason.value == args.which]
        if not chosen:
            number = _number(args.which)
            chosen = [(i, w) for i, w in enumerate(found, 1) if i == number or w.at(number) is not None]
        if not chosen:
            raise CtxwatchError(f"no window is {args.which!r}", todo="ctx windows alone lists all")
    most = _BRIEF if len(chosen) > 1 else sys.maxsize
    for index, window in chosen:
        for line in safetext.listed(index, window, machine.code, most):
            gdb.write(f"{line}\n")


def _number(which: str) -> int:
    try:
        return int(gdb.parse_and_eval(which)) & ((1 << 64) - 1)
    except (gdb.error, ValueError) as error:
        raise UsageError(f"ctx windows: what is {which!r}?", todo="give a number, a kind or an address") from error


COMMAND = Command(
    name="windows",
    summary="List the stretches of code in which a debugger stop finds half-switched state.",
    text="""
        From a syscall entry to the kernel's stack, from an interrupt's first instruction to its swapgs, from the exit's
        swapgs or stack switch to the sysret or iret, the instruction after sti or a load of SS, and the handlers on
        IST stacks. They are found in the guest's code from its interrupt table; no symbols are needed, and no watch.

        Of one kind, or by its number or an address in it, a window is shown whole.
    """,
    example="""
ctx windows
ctx windows exit
ctx windows $pc
""",
    run=run,
    arguments=(argument("which", "a kind, a number of the list, or an address", nargs="?", metavar="WHICH"),),
    needs=Needs.GUEST,
    complete=lambda: tuple(reason.value for reason in Reason),
)
