"""``ctx watch``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import gdb

from gdbext.errors import UsageError
from gdbext.gdb.declare import Command, Needs, argument
from gdbext.rules import codes

if TYPE_CHECKING:
    from gdbext.gdb.extension import Extension


def run(extension: Extension, args: argparse.Namespace) -> None:
    """Begin or end the watch."""
    if args.off:
        if args.off != "off":
            raise UsageError(f"ctx watch: what is {args.off!r}?", todo="ctx watch begins, ctx watch off ends")
        extension.check(Needs.WATCH)
        watch = extension.end()
        assert watch is not None
        gdb.write(f"No longer watching; {watch.stops} stops were made.\n")
        return
    extension.check(Needs.GUEST)
    chosen = codes.parse(args.rules) if args.rules else None
    watch = extension.start(chosen, args.halt, args.stream)
    if watch.armed:
        gdb.write(f"Watching at {len(watch.points)} addresses; continue to go on.\n")
    else:
        gdb.write("The guest has no interrupt table yet: watching begins when it loads one. Continue to go on.\n")


COMMAND = Command(
    name="watch",
    summary="Watch every interrupt, exception and system call of the guest.",
    text="""
        From now on each context that is interrupted is held against the context that is resumed. Findings are shown
        as they come, in one line; ctx findings shows them whole.

        The entries are found from the guest's interrupt table and system-call entry, the exits from the code they
        reach; no symbols are needed. If the guest has not loaded a table yet, watching begins when it does. Your own
        breakpoints, watchpoints and Ctrl-C work as before. Each event costs a stop of about a millisecond.
    """,
    example="""
target remote :1234
ctx watch --halt
continue
""",
    run=run,
    arguments=(
        argument("off", "end the watch and remove its breakpoints", nargs="?", metavar="off"),
        argument("--halt", "stop the guest at the exit that is about to resume a wrong context", action="store_true"),
        argument("--rules", "report only these codes: CW102,CW2xx", metavar="CODES"),
        argument("--via", "how to watch: with breakpoints", choices=("auto", "gdbstub"), default="auto"),
        argument("--stream", "send the events to this UNIX socket instead of judging them here", metavar="SOCKET"),
    ),
    complete=lambda: ("off",),
)
