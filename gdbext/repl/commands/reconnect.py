"""``reconnect``."""

from __future__ import annotations

import argparse

from gdbext.repl.declare import Command
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Begin anew with the same guest."""
    await session.live.reconnect()
    link = session.live.link
    session.screen.note(f"{link.title} is stopped." if link is not None else "GDB runs again.")


COMMAND = Command(
    name="reconnect",
    summary="Start what is gone again, GDB or the guest, and connect to the same guest.",
    text="""
        A bundled guest whose QEMU is gone boots anew; one that still runs is taken as it stands. What was set in a GDB
        that died (breakpoints, the watch, settings) has to be set again; findings and history are kept.
    """,
    example="reconnect",
    run=run,
    topic="connecting",
)
