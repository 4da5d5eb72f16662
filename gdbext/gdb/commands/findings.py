"""``ctx findings``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import gdb

from gdbext.errors import CtxwatchError
from gdbext.gdb import text
from gdbext.gdb.declare import Command, argument
from gdbext.gdb.extension import Extension
from gdbext.report import outfile
from gdbext.report.document import finding_document
from gdbext.rules.finding import Finding


def run(extension: Extension, args: argparse.Namespace) -> None:
    """Show what was found: in the recording that is open, else in the watch."""
    walked, judging = extension.walked, extension.judging
    if args.json and walked is not None:
        _write(args.json, walked.walk.findings, walked.walk.path)
    elif walked is not None:
        text.show(walked.answer("findings"))
    elif judging is None:
        raise CtxwatchError("nothing was watched yet", todo="use ctx watch first")
    elif args.json:
        _write(args.json, extension.findings, *judging.recordings)
    else:
        _show(extension.findings)


def _show(found: Sequence[Finding]) -> None:
    if not found:
        gdb.write("No findings.\n")
    for finding in found:
        gdb.write("\n".join(text.whole(finding)) + "\n\n")


def _write(name: str, found: Sequence[Finding], *recordings: Path) -> None:
    with outfile.document(os.path.expanduser(name), *recordings) as document:
        print(json.dumps([finding_document(finding) for finding in found], indent=2), file=document)
    if name != "-":
        gdb.write(f"{len(found)} findings are in {name}.\n")


COMMAND = Command(
    name="findings",
    summary="Show the findings so far, with cause and advice.",
    text="Equal findings are shown once, with how often they were seen. While a recording is open, they are its own.",
    example="ctx findings --json findings.json",
    run=run,
    arguments=(
        argument("--json", "write them as the list that ctxwatch run --json has; - prints it", metavar="FILE|-"),
    ),
)
