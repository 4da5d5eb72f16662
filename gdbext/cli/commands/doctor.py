"""``ctxwatch doctor``: what is here, what is missing, how to get it."""

from __future__ import annotations

import argparse

from gdbext.cli.command import Command, argument


def _run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from gdbext.cli import checkup
    from gdbext.report import text

    found = list(checkup.checks())
    status = 2 if any(check.state == checkup.MISSING for check in found) else 0
    if args.json:
        import json

        print(json.dumps({"schema": "ctxwatch.doctor/1", "checks": [asdict(check) for check in found]}, indent=2))
        return status
    styles = {checkup.OK: "green", checkup.LIMITED: "yellow", checkup.MISSING: "bold red"}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for check in found:
        detail = Text(check.found, overflow="fold")
        if check.todo:
            detail.append(f"; {check.todo}", "bold")
        table.add_row(Text(check.state, styles[check.state]), check.name, detail)
    text.console().print(table)
    return status


COMMAND = Command(
    name="doctor",
    summary="say what is missing here and how to get it",
    details="Look at everything ctxwatch needs: Python and its packages, GDB and the Python inside it, QEMU and the\n"
    "probe built for it, the compiler. Exit status 2 if something needed is missing.",
    example="ctxwatch doctor",
    arguments=(argument("--json", action="store_true", help="print a JSON document instead of a table"),),
    run=_run,
    order=60,
)
