"""``guests``."""

from __future__ import annotations

import argparse

from gdbext.repl.declare import Command
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """List the bundled guests."""
    from gdbext.qemu import guests

    bundled = [guests.find(name) for name in guests.names()]
    width = max(len(guest.name) for guest in bundled)
    for guest in bundled:
        session.screen.text(f"{guest.name:<{width}}  {', '.join(guest.codes) or 'clean':<12}  {guest.title}")


COMMAND = Command(
    name="guests",
    summary="List the bundled guests: name, codes expected, what each is.",
    text="Each boots with boot NAME; its kernel is built on first use.",
    example="guests",
    run=run,
    topic="connecting",
)
