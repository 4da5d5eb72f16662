"""``ctx findings``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import gdb

from gdbext.errors import CtxwatchError
from gdbext.gdb import text
from gdbext.gdb.declare import Command

if TYPE_CHECKING:
    from gdbext.gdb.extension import Extension


def run(extension: Extension, args: argparse.Namespace) -> None:
    """Show what was found."""
    if extension.engine is None:
        raise CtxwatchError("nothing was watched yet", todo="use ctx watch first")
    found = extension.engine.findings
    if not found:
        gdb.write("No findings.\n")
    for finding in found:
        gdb.write("\n".join(text.whole(finding)) + "\n\n")


COMMAND = Command(
    name="findings",
    summary="Show the findings so far, with cause and advice.",
    text="Equal findings are shown once, with how often they were seen.",
    example="ctx findings",
    run=run,
)
