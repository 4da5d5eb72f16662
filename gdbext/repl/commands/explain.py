"""``explain``."""

from __future__ import annotations

import argparse

from gdbext.repl.declare import Command, argument
from gdbext.repl.screen import rendered
from gdbext.repl.session import Session
from gdbext.rules.codes import CODES


async def run(session: Session, args: argparse.Namespace) -> None:
    """Show a finding code's page."""
    from rich.markdown import Markdown

    from gdbext.report import pages

    if args.code is None:
        session.screen.text("\n".join(pages.index()))
    else:
        session.screen.ansi(rendered(Markdown(pages.page(args.code)), min(session.screen.columns, 100)))


COMMAND = Command(
    name="explain",
    summary="Explain a finding code; without one, list them.",
    text="The page says what the code means, what it looks like in a kernel, and where to look first.",
    example="explain CW102",
    run=run,
    arguments=(argument("code", "a finding code", nargs="?", metavar="CODE"),),
    complete=lambda session: tuple(CODES),
    topic="watching",
)
