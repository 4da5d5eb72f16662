"""``ctx explain``."""

from __future__ import annotations

import argparse

import gdb

from gdbext.gdb.declare import Command, argument
from gdbext.gdb.extension import Extension
from gdbext.report import pages
from gdbext.rules.codes import CODES


def run(extension: Extension, args: argparse.Namespace) -> None:
    """Print a page, or the list."""
    gdb.write(pages.page(args.code) if args.code else "\n".join(pages.index()) + "\n")


COMMAND = Command(
    name="explain",
    summary="Print the page of a finding code.",
    text="What the code says, what it looks like in a kernel, where to look first. Without a code, list all of them.",
    example="ctx explain CW102",
    run=run,
    arguments=(argument("code", "a finding code", nargs="?", metavar="CODE"),),
    complete=lambda: tuple(CODES),
)
