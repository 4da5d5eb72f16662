"""``quit``."""

from __future__ import annotations

import argparse

from gdbext.repl.declare import Command
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Leave the REPL."""
    session.leaving = True


COMMAND = Command(
    name="quit",
    summary="Leave the REPL.",
    text="""
        A guest that was booted here ends; one that was connected to goes on without breakpoints. Ctrl-D does the same
        and asks first when a guest is there.
    """,
    example="quit",
    run=run,
    aliases=("q", "exit"),
)
