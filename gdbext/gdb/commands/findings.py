"""``ctx findings``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import gdb

from gdbext.errors import CtxwatchError, UsageError
from gdbext.gdb import text
from gdbext.gdb.declare import Command, argument
from gdbext.report.document import finding_document
from gdbext.rules.finding import Finding

if TYPE_CHECKING:
    from gdbext.gdb.extension import Extension


def run(extension: Extension, args: argparse.Namespace) -> None:
    """Show what was found."""
    if extension.judging is None:
        raise CtxwatchError("nothing was watched yet", todo="use ctx watch first")
    found = extension.findings
    if args.json:
        _write(Path(args.json), found)
        gdb.write(f"{len(found)} findings are in {args.json}.\n")
        return
    if not found:
        gdb.write("No findings.\n")
    for finding in found:
        gdb.write("\n".join(text.whole(finding)) + "\n\n")


def _write(path: Path, found: Sequence[Finding]) -> None:
    try:
        path.write_text(json.dumps([finding_document(finding) for finding in found], indent=2) + "\n", "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}", error.strerror or str(error)) from error


COMMAND = Command(
    name="findings",
    summary="Show the findings so far, with cause and advice.",
    text="Equal findings are shown once, with how often they were seen.",
    example="ctx findings --json findings.json",
    run=run,
    recorded=True,
    arguments=(argument("--json", "write them to FILE, as ctxwatch run --json does", metavar="FILE"),),
)
