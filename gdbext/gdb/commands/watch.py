"""``ctx watch``."""

from __future__ import annotations

import argparse

import gdb

from gdbext.errors import UsageError
from gdbext.gdb.declare import Command, argument
from gdbext.gdb.extension import Extension
from gdbext.gdb.needs import Needs
from gdbext.rules import codes


def run(extension: Extension, args: argparse.Namespace) -> None:
    """Begin or end the watch."""
    if args.off:
        if args.off != "off":
            raise UsageError(f"ctx watch: what is {args.off!r}?", todo="ctx watch begins, ctx watch off ends")
        extension.check(Needs.WATCH)
        watch = extension.end()
        assert watch is not None
        gdb.write(f"No longer watching; {watch.ending()}.\n")
        return
    extension.check(Needs.GUEST)
    chosen = codes.parse(args.rules) if args.rules is not None else None
    if args.stream is not None and args.via == "probe":
        raise UsageError("ctx watch: --stream is for --via gdbstub")
    watch = extension.start(chosen, args.halt, args.via, args.stream)
    gdb.write(f"{watch.beginning()}\n")


COMMAND = Command(
    name="watch",
    summary="Watch every interrupt, exception and system call of the guest.",
    text="""
        From now on each context that is interrupted is held against the context that is resumed. Findings are shown
        as they come, in one line; ctx findings shows them whole.

        The entries are found from the guest's interrupt table and system-call entry, the exits from the code they
        reach; no symbols are needed. If the guest has not loaded a table yet, watching begins when it does. Your own
        breakpoints, watchpoints and Ctrl-C work as before.

        A guest whose QEMU was started with the words of `ctxwatch qemu-args` is watched through the probe they load,
        at microseconds an event. Without it GDB sets breakpoints, and each event costs a stop of some milliseconds.
    """,
    example="""
target remote :1234
ctx watch --halt
continue
""",
    run=run,
    arguments=(
        argument("off", "end the watch and remove its breakpoints", nargs="?", metavar="off"),
        argument(
            "--halt",
            "stop the guest where a wrong context is resumed",
            action="store_true",
        ),
        argument("--rules", "report only these codes: CW102,CW2xx", metavar="CODES"),
        argument(
            "--via",
            "how to watch: through the probe in QEMU, with breakpoints, or auto: the probe if there is one",
            choices=("auto", "probe", "gdbstub"),
            default="auto",
            metavar="probe|gdbstub|auto",
        ),
        argument("--stream", "send the events to this UNIX socket instead of judging them here", metavar="SOCKET"),
    ),
    complete=lambda: ("off",),
)
