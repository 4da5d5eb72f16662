"""``next-finding``."""

from __future__ import annotations

import argparse

from gdbext.repl.declare import Command
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Go to the next event at which something was found."""
    recorded = session.recording()
    recorded.walk.next_finding()
    recorded.here()


COMMAND = Command(
    name="next-finding",
    summary="Go to the next event at which something was found.",
    text="Equal findings are found where they were seen first. An empty line goes on.",
    example="next-finding",
    run=run,
    again=True,
    topic="recordings",
)
