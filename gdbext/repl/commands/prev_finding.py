"""``prev-finding``."""

from __future__ import annotations

import argparse

from gdbext.repl.declare import Command
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Go back to the event before this one at which something was found."""
    recorded = session.recording()
    recorded.walk.prev_finding()
    recorded.here()


COMMAND = Command(
    name="prev-finding",
    summary="Go back to the event before this one at which something was found.",
    text="Equal findings are found where they were seen first. An empty line goes on.",
    example="prev-finding",
    run=run,
    again=True,
    topic="recordings",
)
