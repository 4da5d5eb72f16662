"""``connect``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from gdbext.repl.declare import Command, argument
from gdbext.repl.links import AddressLink
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Connect to somebody's gdbstub."""
    link = AddressLink(args.address, Path(os.path.expanduser(args.kernel)) if args.kernel else None)
    session.close_recording()
    await session.live.connect(link)
    session.screen.note(f"{link.title} is stopped; `ctx watch`, then `continue`. Leaving lets it run on.")


COMMAND = Command(
    name="connect",
    summary="Connect GDB to the gdbstub of a QEMU that runs already.",
    text="""
        Start that QEMU with -gdb tcp::1234 (or -s), or -gdb unix:PATH,server=on,wait=off. It serves one debugger at a
        time. target remote does the same and waits longer for a port where nobody listens.
    """,
    example="connect localhost:1234 --kernel build/kernel.elf",
    run=run,
    arguments=(
        argument("address", "where the gdbstub listens, or the path of its UNIX socket", metavar="HOST:PORT"),
        argument("--kernel", "the kernel's ELF file, for symbols", metavar="FILE"),
    ),
    complete=lambda session: ("--kernel",),
    files=True,
    topic="connecting",
)
