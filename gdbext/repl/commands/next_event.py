"""``next-event``."""

from __future__ import annotations

import argparse

from gdbext.repl.declare import Command, argument, number
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Go to the next event of the recording, or N on."""
    recorded = session.recording()
    recorded.walk.step(args.count)
    recorded.here()


COMMAND = Command(
    name="next-event",
    summary="Go to the next event of the recording, or N on.",
    text="Events of all CPUs are in one order. An empty line goes on.",
    example="next-event 10",
    run=run,
    arguments=(argument("count", "how many events", nargs="?", type=number, default=1, metavar="N"),),
    again=True,
    topic="recordings",
)
