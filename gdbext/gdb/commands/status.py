"""``ctx status``."""

from __future__ import annotations

import argparse

import gdb

from gdbext.gdb import safetext
from gdbext.gdb.declare import Command
from gdbext.gdb.extension import Extension
from gdbext.gdb.functions import parity_name
from gdbext.gdb.guest import named
from gdbext.gdb.target import running


def run(extension: Extension, args: argparse.Namespace) -> None:
    """Say what is watched and what was seen."""
    watch = extension.watch
    if watch is None:
        gdb.write("Not watching.\n")
    elif watch.failed is not None:
        gdb.write(f"The watch failed: {watch.failed}\n")
    else:
        gdb.write("".join(f"{line}\n" for line in watch.status()))
    counts = extension.counts
    if counts is not None:
        gdb.write(
            f"Events: {counts.entries} entries ({counts.syscalls} system calls), {counts.exits} exits, "
            f"{counts.swapgs} swapgs; {counts.identical} resumed identical, {counts.unmatched} unmatched.\n"
        )
        gdb.write(f"Findings: {len(extension.findings)}.\n")
    if watch is not None and watch.judging is not None and watch.judging.recording is not None:
        gdb.write(f"Recording to {watch.judging.recording}.\n")
    if running():
        gdb.write("The guest is running.\n")
    elif watch is not None:
        for thread in sorted(gdb.selected_inferior().threads(), key=lambda thread: thread.num):
            gdb.write(f"  CPU {thread.ptid[1] - 1}: GS {parity_name(watch.gs.parity(thread.ptid[1] - 1))}\n")
    if not running():
        _write_window(extension)


def _write_window(extension: Extension) -> None:
    place = extension.windows.here()
    if place is None or not extension.windows.all():
        return
    if place.window is None:
        gdb.write(f"{named(place.pc)} is in no window.\n")
    else:
        gdb.write(f"{named(place.pc)} is in a window ({place.window.reason.value}): {safetext.state(place)}.\n")


COMMAND = Command(
    name="status",
    summary="Show what is watched, what was seen, and the state of each CPU.",
    text="""
        Tables and system-call entries found, events counted, findings, which GS base is active on each CPU by count
        of the swapgs seen, and whether the guest stands in a window now.
    """,
    example="ctx status",
    run=run,
    recorded=True,
)
