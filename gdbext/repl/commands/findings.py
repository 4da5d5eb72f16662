"""``findings``."""

from __future__ import annotations

import argparse

from gdbext.errors import UsageError
from gdbext.repl.declare import Command, argument, number
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Draw the findings."""
    found = await session.findings()
    if args.number is not None and not 1 <= args.number <= len(found):
        raise UsageError(f"there is no finding {args.number}", todo=f"there are {len(found)} so far")
    chosen = found if args.number is None else found[args.number - 1 : args.number]
    for finding in chosen:
        session.screen.ansi(finding.picture or "\n".join(finding.lines))
        if finding.count > 1:
            session.screen.note(f"  seen {finding.count} times")
    if not found:
        session.screen.note("no findings")


COMMAND = Command(
    name="findings",
    summary="Draw the findings: interrupted and resumed context side by side, cause and advice.",
    text="""
        With a number, that finding alone. Equal findings are drawn once, with how often they were seen. The findings
        of guests that are gone are still here; in a recording, they are those it holds.
    """,
    example="findings 1",
    run=run,
    arguments=(argument("number", "the finding's place in the list, from 1", nargs="?", type=number, metavar="N"),),
    topic="watching",
)
