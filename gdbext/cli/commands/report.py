"""``ctxwatch report``: a recorded session as a page."""

from __future__ import annotations

import argparse

from gdbext.cli.command import Command, argument


def _run(args: argparse.Namespace) -> int:
    from gdbext.cli.recordings import report

    return report(args.file, args.output)


COMMAND = Command(
    name="report",
    summary="turn a recording into a page to read and to pass on",
    details="Judge a recording and write one HTML page that needs no network: a timeline per vCPU that zooms, the\n"
    "findings with both contexts, the way from save to resume and the code at both ends, which GS base was active,\n"
    "and how often and how long each vector's handlers ran. Nothing that the guest says can act in the page.\n"
    "\n"
    "Exit status: 0 it was written; 2 it was not, or the recording is not whole.",
    example="ctxwatch report session.arrow -o session.html",
    arguments=(
        argument("file", metavar="FILE", help="the recording"),
        argument("--output", "-o", metavar="OUT", help="the page to write; default: FILE.html"),
    ),
    run=_run,
    order=13,
)
