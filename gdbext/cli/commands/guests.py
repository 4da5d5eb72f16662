"""``ctxwatch guests``: the bundled guests."""

from __future__ import annotations

import argparse

from gdbext.cli.command import Command, argument


def _run(args: argparse.Namespace) -> int:
    from gdbext.qemu import guests

    bundled = [guests.find(name) for name in guests.names()]
    if args.json:
        import json

        rows = [{"name": g.name, "arch": g.arch, "title": g.title, "wrong": g.wrong, "codes": g.codes} for g in bundled]
        print(json.dumps({"schema": "ctxwatch.guests/1", "guests": rows}, indent=2))
        return 0
    from rich.table import Table

    from gdbext.report import text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("guest", "arch", "expected", "what it does wrong"):
        table.add_column(heading, no_wrap=heading != "what it does wrong")
    for guest in bundled:
        codes = ", ".join(guest.codes) or "nothing"
        table.add_row(guest.name, guest.arch, codes, guest.wrong or guest.title)
    text.console().print(table)
    return 0


COMMAND = Command(
    name="guests",
    summary="list the bundled guests and what each does wrong",
    details="List the guests that come with ctxwatch: what each does wrong and which finding codes it must give.\n"
    "`ctxwatch run NAME` boots one; its kernel is built on first use.",
    example="ctxwatch guests",
    arguments=(argument("--json", action="store_true", help="print a JSON document instead of a table"),),
    run=_run,
    order=20,
)
