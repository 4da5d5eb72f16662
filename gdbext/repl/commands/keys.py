"""``keys``."""

from __future__ import annotations

import argparse
import dataclasses

from gdbext.repl.config import KEYS, config_path
from gdbext.repl.declare import Command, argument
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Show or choose the editing keys."""
    if args.keys is not None:
        session.config = dataclasses.replace(session.config, keys=args.keys)
    session.screen.text(f"editing keys: {session.config.keys}")
    session.screen.note(f'`keys = "{session.config.keys}"` in {config_path()} makes it last')


COMMAND = Command(
    name="keys",
    summary="Show or choose the editing keys: emacs or vi.",
    text="The choice holds for this session; the configuration file makes it last.",
    example="keys vi",
    run=run,
    arguments=(argument("keys", "emacs or vi", nargs="?", choices=KEYS, metavar="emacs|vi"),),
    complete=lambda session: KEYS,
    topic="keys",
)
