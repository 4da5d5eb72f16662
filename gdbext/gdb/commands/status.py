"""``ctx status``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import gdb

from gdbext.code.windows import find
from gdbext.gdb.declare import Command
from gdbext.gdb.extension import running
from gdbext.gdb.functions import parity_name
from gdbext.gdb.guest import named

if TYPE_CHECKING:
    from gdbext.gdb.extension import Extension


def run(extension: Extension, args: argparse.Namespace) -> None:
    """Say what is watched and what was seen."""
    watch = extension.watch
    if watch is None:
        gdb.write("Not watching.\n")
    elif watch.failed is not None:
        gdb.write(f"The watch failed: {watch.failed}\n")
    elif not watch.armed:
        gdb.write("Watching; the guest has not loaded an interrupt table yet.\n")
    else:
        machine = watch.machine
        gdb.write(f"Watching at {len(watch.points)} addresses, {watch.stops} stops so far.\n")
        for base, limit in machine.tables.describe():
            gdb.write(f"  interrupt table {base:#x}, limit {limit:#x}\n")
        for title, found in (("syscall", machine.syscalls), ("sysenter", machine.sysenters)):
            for address in sorted(found):
                gdb.write(f"  {title} entry {named(address)}\n")
        if not machine.syscalls and not machine.sysenters:
            gdb.write("  no system-call entry found yet\n")
        if machine.reach is not None and machine.reach.indirect:
            gdb.write(f"  {len(machine.reach.indirect)} indirect jumps and calls could not be followed\n")
    engine = extension.engine
    if engine is not None:
        counts = engine.counts
        gdb.write(
            f"Events: {counts.entries} entries ({counts.syscalls} system calls), {counts.exits} exits, "
            f"{counts.swapgs} swapgs; {counts.identical} resumed identical, {counts.unmatched} unmatched.\n"
        )
        gdb.write(f"Findings: {len(engine.findings)}.\n")
    if running():
        gdb.write("The guest is running.\n")
    elif watch is not None:
        for thread in sorted(gdb.selected_inferior().threads(), key=lambda thread: thread.num):
            gdb.write(f"  CPU {thread.ptid[1] - 1}: GS {parity_name(watch.parity.of(thread.ptid[1] - 1))}\n")
        _write_window(extension)


def _write_window(extension: Extension) -> None:
    assert extension.watch is not None
    try:
        pc = int(gdb.newest_frame().pc())
    except gdb.error:
        return  # no guest, or it runs
    window = find(extension.watch.machine.windows, pc)
    if window is None:
        gdb.write(f"{named(pc)} is in no window.\n")
    else:
        gdb.write(f"{named(pc)} is in a window ({window.reason.value}): {window.state_at(pc)}.\n")


COMMAND = Command(
    name="status",
    summary="Show what is watched, what was seen, and the state of each CPU.",
    text="""
        Tables and system-call entries found, events counted, findings, which GS base is active on each CPU by count
        of the swapgs seen, and whether the guest stands in a window now.
    """,
    example="ctx status",
    run=run,
)
