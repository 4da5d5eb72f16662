"""``boot``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from gdbext.errors import UsageError
from gdbext.repl.declare import Command, argument
from gdbext.repl.links import MachineLink, bundled, own
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Boot a bundled guest, or a QEMU command line."""
    link = _link(session, args)
    session.close_recording()
    await session.live.connect(link)
    if link.note:
        session.screen.note(link.note)
    session.screen.note(f"{link.title} stands before its first instruction; `ctx watch`, then `continue`.")


def _link(session: Session, args: argparse.Namespace) -> MachineLink:
    if (args.guest is None) == (not args.qemu):
        what = "nothing to boot" if args.guest is None else "both a guest and a QEMU command line are given"
        raise UsageError(what, todo="name a bundled guest, or put your QEMU command line after --")
    if args.guest is None:
        return own(args.qemu, Path(os.path.expanduser(args.kernel)) if args.kernel else None)
    if args.kernel is not None:
        raise UsageError("--kernel goes with a QEMU command line", todo="leave it out: a bundled guest has its symbols")
    return bundled(args.guest)


def guests(session: Session) -> Sequence[str]:
    """The bundled guests' names."""
    from gdbext.qemu import guests

    return guests.names()


COMMAND = Command(
    name="boot",
    summary="Boot a bundled guest, or your QEMU command line, and connect GDB to it.",
    text="""
        The guest stands before its first instruction, its kernel's symbols are loaded. What it prints on its serial
        port is shown as it comes. It ends with the REPL, or when another guest is taken.

        A bundled guest is watched by breakpoints, with a clock that counts instructions; to your own command line the
        probe is added where it can be had, and its clock is left alone.
    """,
    example="""
boot nrk-rflags
boot --kernel build/kernel.elf -- qemu-system-x86_64 -m 256M -cdrom os.iso
ctx watch --halt
continue
""",
    run=run,
    arguments=(
        argument("guest", "a bundled guest; guests lists them", nargs="?", metavar="GUEST"),
        argument("--kernel", "your kernel's ELF file, for symbols, where -kernel does not name it", metavar="FILE"),
    ),
    qemu=True,
    complete=guests,
    topic="connecting",
)
