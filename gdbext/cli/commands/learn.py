"""``ctxwatch learn``: derive a kernel's save area from its code, and write it down as a profile."""

from __future__ import annotations

import argparse

from gdbext.cli.command import Command, argument


def _run(args: argparse.Namespace) -> int:
    from gdbext.cli import learning

    return learning.run(learning.request(args))


COMMAND = Command(
    name="learn",
    summary="derive a kernel's save area from the code of its entry and exit paths",
    details="Follow every register through the entry and exit paths, and print where they keep it, as a profile for\n"
    "--profile. A guest, bundled or your own QEMU command line after --, is run for a moment: its interrupt table and\n"
    "its first entries name the paths, its live saves confirm the layout. With --kernel alone the paths are looked\n"
    "for in the file, as far as it shows them.\n"
    "\n"
    "What the paths forget is told on standard error: a register that is never stored, a slot that is read but never\n"
    "written on a path, two registers that share one slot. The exit status is 3 if no save area was found.",
    example="ctxwatch learn clean-nrk\n"
    "ctxwatch learn --kernel build/kernel.elf -o mine.toml\n"
    "ctxwatch learn -- qemu-system-x86_64 -m 256M -cdrom os.iso",
    arguments=(
        argument("guest", nargs="?", metavar="GUEST", help="a bundled guest; `ctxwatch guests` lists them"),
        argument("--kernel", metavar="FILE", help="look at this kernel's code without running it"),
        argument("--output", "-o", metavar="FILE", help="write the profile here instead of printing it"),
        argument("--name", metavar="NAME", default="learnt", help="the profile's name (default: learnt)"),
        argument("--entries", metavar="N", type=int, default=3000, help="end the run after N entries (default: 3000)"),
        argument("--timeout", metavar="SECONDS", type=float, default=20.0, help="end the run after this time (20)"),
    ),
    qemu=True,
    run=_run,
    order=25,
)
