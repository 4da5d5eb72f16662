"""``ctx gs``."""

from __future__ import annotations

import argparse

import gdb

from gdbext.errors import CtxwatchError, UsageError
from gdbext.gdb.declare import Command, argument
from gdbext.gdb.extension import Extension
from gdbext.gdb.guest import named
from gdbext.gdb.target import Target, cpu_of, running
from gdbext.report.refusal import these
from gdbext.rules import gslog
from gdbext.rules.gslog import Base, GsState
from gdbext.rules.parity import UNKNOWN, USER


def run(extension: Extension, args: argparse.Namespace) -> None:
    """Show GS now, and how it came to be so."""
    if args.count is not None and args.count < 0:
        raise UsageError(f"ctx gs: {args.count} is not a number of transitions")
    watch = extension.watch
    if watch is None:
        if args.count:
            raise CtxwatchError("no transitions are known", "nothing is watched", "use ctx watch first")
        _now(None, args.cpu)
        gdb.write("Nothing is watched: no swapgs is counted and no load is seen.\n")
        return
    with watch.held():
        log = watch.gs
        if running():
            _as_of_last_event(log, args.cpu)
        else:
            _now(log, args.cpu)
        for one in log.transitions(args.count or 0, args.cpu):
            gdb.write(f"{gslog.line(one, named)}\n")


def _now(log: gslog.GsLog | None, cpu: int | None) -> None:
    """Each CPU, or `cpu` alone, as it stands: what its registers hold, and what is known of how they came to."""
    if not gdb.selected_inferior().pid:
        raise CtxwatchError("no guest", "GDB is not connected to one", "use target remote HOST:PORT")
    guest = Target()
    chosen = gdb.selected_thread()
    threads = {cpu_of(thread): thread for thread in gdb.selected_inferior().threads()}
    try:
        for one in these(sorted(threads), cpu):
            threads[one].switch()
            _one(guest, log, threads[one].num == chosen.num)
    finally:
        if chosen is not None and chosen.is_valid():
            chosen.switch()


def _one(guest: Target, log: gslog.GsLog | None, chosen: bool) -> None:
    registers, cpu = guest.registers(), guest.cpu()
    cpl = registers.get("cs", 0) & 3
    known = log.state(cpu) if log is not None else None
    state = known or GsState(UNKNOWN, Base(), Base(), None)
    parity = USER if cpl == 3 else state.parity
    bases = (registers.get("gs_base"), registers.get("kernel_gs_base"))
    # A swap behind the last event has not been seen yet: a base keeps its loader by value.
    loads = {base.value: base.load for base in (state.active, state.inactive) if base.load is not None}
    active, inactive = (
        known if known.value == value else Base(value, loads.get(value))
        for known, value in zip((state.active, state.inactive), bases, strict=True)
    )
    mark = "*" if chosen else " "
    gdb.write(f"{mark} CPU {cpu}: GS {gslog.parity_name(parity)}, CPL {cpl}\n")
    for line in gslog.describe(GsState(parity, active, inactive, state.swap), named, log is not None):
        gdb.write(f"    {line}\n")


def _as_of_last_event(log: gslog.GsLog, cpu: int | None) -> None:
    gdb.write("The guest is running; as of its last event:\n")
    for one in these(log.cpus(), cpu):
        state = log.state(one)
        if state is not None:
            gdb.write(f"  CPU {one}: GS {gslog.parity_name(state.parity)}\n")
            for line in gslog.describe(state, named):
                gdb.write(f"    {line}\n")


COMMAND = Command(
    name="gs",
    summary="Show which GS base is active on each CPU, both bases, who loaded them, and the last transitions.",
    text="""
        The parity is counted from the swapgs seen and never guessed from values: a kernel that loads both bases with
        the same value hides a wrong swap from anything that compares them. CPL 3 means the user's base. For each base
        the event is named that loaded it, if it was seen. With a number, the last so many transitions follow: each
        swapgs, each load of a base, each crossing into and out of CPL 3, with the parity before and after.
        With --cpu all this is of one CPU alone.

        Without a watch, the registers alone are shown.
    """,
    example="ctx gs 20",
    run=run,
    recorded=True,
    arguments=(
        argument("count", "show this many transitions", nargs="?", type=int, metavar="N"),
        argument("--cpu", "of this CPU alone", type=int, metavar="CPU"),
    ),
)
