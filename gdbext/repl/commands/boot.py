"""``boot``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from gdbext.repl.declare import Command, argument
from gdbext.repl.links import BundledLink
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Boot a bundled guest."""
    session.close_recording()
    await session.live.connect(BundledLink(args.guest))
    session.screen.note(f"{args.guest} stands before its first instruction; `ctx watch`, then `continue`.")


def guests(session: Session) -> Sequence[str]:
    """The bundled guests' names."""
    from gdbext.qemu import guests

    return guests.names()


COMMAND = Command(
    name="boot",
    summary="Boot a bundled guest in a QEMU of its own and connect GDB to it.",
    text="""
        The guest stands before its first instruction, its kernel's symbols are loaded. What it prints on its serial
        port is shown as it comes. It ends with the REPL, or when another guest is taken.
    """,
    example="""
boot nrk-rflags
ctx watch --halt
continue
""",
    run=run,
    arguments=(argument("guest", "a bundled guest; guests lists them", metavar="GUEST"),),
    complete=guests,
    topic="connecting",
)
