"""``ctxwatch demo``: the bundled guest that loses RFLAGS, caught."""

from __future__ import annotations

import argparse

from gdbext.cli.command import Command, argument
from gdbext.errors import GuestFailed

GUEST = "nrk-rflags"
_LEARN = 2000
"""Entries after the first finding: some seconds. That it comes again, and is explained, takes a few hundred."""


def _run(args: argparse.Namespace) -> int:
    from gdbext.cli import running
    from gdbext.report import text

    console = text.console()
    console.print(f"Booting the bundled guest {GUEST}. Its interrupt path saves every register but one.\n")
    status = running.run(running.Request(guest=GUEST, via=args.via, max_findings=1, halt=True, learn=_LEARN))
    if status == 0:
        raise GuestFailed("the demo found nothing", "its guest lost no flags that mattered in time", "run it again")
    if status != 1:
        return status
    console.print(
        "\nNext: `ctxwatch explain CW102`, `ctxwatch guests`, or your kernel: `ctxwatch run -- qemu-system-x86_64 …`"
    )
    return 0


COMMAND = Command(
    name="demo",
    summary="catch a lost RFLAGS in a bundled guest",
    details="Boot the bundled guest whose interrupt path forgets RFLAGS, stop it at the first context that is resumed\n"
    "with the wrong flags, and explain what happened; then let it run on until it shows who wrote those flags.",
    example="ctxwatch demo",
    arguments=(
        argument(
            "--via", choices=("probe", "gdbstub", "auto"), default="auto", help="how to watch (see `ctxwatch run`)"
        ),
    ),
    run=_run,
    order=1,
)
