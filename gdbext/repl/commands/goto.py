"""``goto``."""

from __future__ import annotations

import argparse

from gdbext.repl.declare import Command, argument, number
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Go to an event of the recording."""
    recorded = session.recording()
    recorded.walk.goto(args.event)
    recorded.here()


COMMAND = Command(
    name="goto",
    summary="Go to an event of the recording.",
    text="Its instruction is about to run. Status, registers and save areas are then shown as they were.",
    example="goto 4711",
    run=run,
    arguments=(argument("event", "the event's number", type=number, metavar="EVENT"),),
    topic="recordings",
)
