"""``help``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from gdbext.repl import topics
from gdbext.repl.declare import Command, argument
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Help by topic, by command of ours, by command of GDB's."""
    words = " ".join(args.words)
    if not words:
        session.screen.text(topics.index())
    elif words in topics.TOPICS:
        session.screen.text(topics.page(words, session.commands))
    elif words in session.commands:
        session.screen.text(session.commands[words].help())
    elif session.recorded is not None:
        await session.recorded.run(f"help {words}")
    else:
        await session.live.run(f"help {words}")


def words(session: Session) -> Sequence[str]:
    """Topics and commands of ours; GDB's come from GDB."""
    return [*topics.TOPICS, *session.commands]


COMMAND = Command(
    name="help",
    summary="Help by topic, or for one command.",
    text="""
        Without a word, the topics. help COMMAND is for a command of the REPL, of ctxwatch in GDB (help ctx watch) and
        of GDB itself.
    """,
    example="help watching",
    run=run,
    arguments=(argument("words", "a topic or a command", nargs="*", metavar="TOPIC|COMMAND"),),
    complete=words,
)
