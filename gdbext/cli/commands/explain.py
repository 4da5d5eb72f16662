"""``ctxwatch explain CODE``: the page of a finding code."""

from __future__ import annotations

import argparse

from gdbext.cli.command import Command, argument


def _run(args: argparse.Namespace) -> int:
    from rich.markdown import Markdown

    from gdbext.report import pages, text

    console = text.console()
    if args.code is None:
        for line in pages.index():
            console.print(line, soft_wrap=True)
        return 0
    console.print(Markdown(pages.page(args.code)))
    return 0


COMMAND = Command(
    name="explain",
    summary="explain a finding code",
    details="Print the page of a finding code: what it says, what it looks like in a kernel, where to look first.\n"
    "Without a code, list all of them.",
    example="ctxwatch explain CW102",
    arguments=(argument("code", nargs="?", metavar="CODE", help="a finding code, for example CW102"),),
    run=_run,
    order=30,
)
