"""``ctx skip``."""

from __future__ import annotations

import argparse

import gdb

from gdbext.code.listing import text
from gdbext.gdb.declare import Command
from gdbext.gdb.extension import Extension
from gdbext.gdb.guest import named
from gdbext.gdb.needs import Needs
from gdbext.gdb.skip import skip


def run(extension: Extension, args: argparse.Namespace) -> None:
    """Pass the window and say where that led."""
    with extension.safety.unguarded():
        arrival = skip(extension.windows)
    machine = extension.windows.machine()
    insn = machine.code.insn(arrival.at) if machine is not None and machine.code is not None else None
    gdb.write(f"Arrived at {named(arrival.at)}{f': {text(insn)}' if insn else ''}, {arrival.why}.\n")


COMMAND = Command(
    name="skip",
    summary="Run to the first instruction after the window the guest stands in, or in front of.",
    text="""
        The vCPU is not stepped: it runs to the far side of the window with a temporary hardware breakpoint. That is
        the code behind the switch of stack or GS base, or the context that a sysret (from RCX) or an iret (from its
        frame) resumes. Where that lies in another window, that one is passed too.
    """,
    example="""
stepi
ctx skip
""",
    run=run,
    needs=Needs.GUEST,
)
