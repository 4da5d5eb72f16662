"""``open``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from gdbext.repl.declare import Command, argument
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Open a recording."""
    opened = await session.read(Path(os.path.expanduser(args.file)))
    await session.take_recording(opened)
    walk = opened.walk
    found = f"{len(walk.findings)} finding{'s' * (len(walk.findings) != 1)}"
    session.screen.note(f"{walk.header.guest}, events {walk.first} to {walk.last}, {found}; next-finding, goto EVENT")
    if walk.flaw:
        session.screen.error(f"the recording is incomplete: {walk.flaw}")
    opened.here()


COMMAND = Command(
    name="open",
    summary="Open a recording to walk it.",
    text="""
        A guest that is connected is left. The recording stands at its first event. It needs neither QEMU nor GDB; what
        it cannot do is refused by name.
    """,
    example="""
open run.arrow
next-finding
info registers
""",
    run=run,
    arguments=(argument("file", "a recording, complete or not", metavar="FILE"),),
    files=True,
    topic="recordings",
)
