"""``ctx record``."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import gdb

from gdbext.errors import CtxwatchError, UsageError
from gdbext.gdb.declare import Command, argument
from gdbext.gdb.extension import Extension
from gdbext.gdb.needs import Needs
from gdbext.report import outfile
from gdbext.report.document import QemuFacts

if TYPE_CHECKING:
    from gdbext.gdb.watching import Watching


def run(extension: Extension, args: argparse.Namespace) -> None:
    """Begin or end the recording of the watch at hand."""
    watch = extension.watch
    assert watch is not None
    now = watch.judging.recording if watch.judging is not None else None
    if args.file == "off":
        path = watch.end_recording()
        if path is None:
            raise UsageError("nothing is recorded", todo="ctx record FILE begins")
        gdb.write(f"Recorded to {path}.\n")
        return
    if now is not None:
        raise UsageError(f"already recording to {now}", todo="end it with ctx record off first")
    extension.check(Needs.WATCH)
    path = Path(os.path.expanduser(args.file)).absolute()
    kernel = gdb.current_progspace().filename
    if kernel:
        outfile.keep_apart(path, Path(kernel), called="kernel")
    try:
        watch.record(path, _guest(), _qemu(watch), extension.say)
    except ImportError as error:
        raise CtxwatchError("recording needs pyarrow", str(error), "run scripts/bootstrap") from error
    gdb.write(f"Recording to {path} from the next event on; ctx record off ends it.\n")


def _guest() -> str:
    """What the guest is called: by its kernel's file, failing that by where GDB is connected."""
    name = gdb.current_progspace().filename
    if name:
        return Path(name).name
    connection = getattr(gdb.selected_inferior(), "connection", None)
    return str(getattr(connection, "details", None) or "guest")


def _qemu(watch: Watching) -> QemuFacts:
    version = re.search(r"\d+(?:\.\d+)+", watch.target.monitor("info version"))
    kvm = "enabled" in watch.target.monitor("info kvm")
    return QemuFacts(version[0] if version else "", "kvm" if kvm else "tcg")


COMMAND = Command(
    name="record",
    summary="Record the watch to a file, from now on.",
    text="""
        Every event goes to the file with what the rules looked at, so that ctxwatch replay, report and export, the
        REPL and ctx replay can work on it later without the guest. The file has its name when the recording is
        closed, by ctx record off or with the watch; until then it is called FILE.incomplete, and what was written
        can be read whatever happens. The rules begin anew with the recording: a replay finds what they find from
        here on. To begin, the guest must stand still; to end, only where GDB's breakpoints watch it.
    """,
    example="""
ctx watch
ctx record boot.arrow
continue
ctx record off
""",
    run=run,
    needs=Needs.RUNNING_WATCH,
    arguments=(argument("file", "the recording to make, or off to end it", metavar="FILE|off"),),
    complete=lambda: ("off",),
    files=True,
)
