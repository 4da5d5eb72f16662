"""``prev``."""

from __future__ import annotations

import argparse

from gdbext.repl.declare import Command, argument, number
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Go back to the event before, or N back."""
    recorded = session.recording()
    recorded.walk.step(-args.count)
    recorded.here()


COMMAND = Command(
    name="prev",
    summary="Go back to the event before, or N back.",
    text="Events of all CPUs are in one order. An empty line goes on.",
    example="prev 10",
    run=run,
    arguments=(argument("count", "how many events", nargs="?", type=number, default=1, metavar="N"),),
    again=True,
    topic="recordings",
)
