"""``ctxwatch run``: boot a guest and watch it."""

from __future__ import annotations

import argparse

from gdbext.cli.command import Command, argument

ARGUMENTS = (
    argument("guest", nargs="?", metavar="GUEST", help="a bundled guest; `ctxwatch guests` lists them"),
    argument(
        "--via",
        choices=("probe", "gdbstub", "auto"),
        default="auto",
        help="how to watch: a plugin inside QEMU, or GDB's breakpoints (milliseconds an event); auto: the probe where "
        "it can be had",
    ),
    argument("--kernel", metavar="FILE", help="the kernel with its symbols: an ELF file or a vmlinuz"),
    argument("--profile", metavar="NAME|FILE", help="what is known of this kernel; the default assumes nothing"),
    argument("--halt", action="store_true", help="stop the guest on the first instruction of the first wrong context"),
    argument("--hold", action="store_true", help="with --halt: keep the halted guest for GDB until you press Enter"),
    argument("--json", metavar="FILE|-", help="write the result as JSON; - prints it, and nothing else"),
    argument("--record", metavar="FILE", help="record the events; `ctxwatch replay FILE` judges them again"),
    argument("--until", metavar="TEXT", help="end the run when the guest prints TEXT on its serial port"),
    argument("--timeout", metavar="SECONDS", type=float, help="end the run after this time"),
    argument("--max-findings", metavar="N", type=int, default=0, help="end the run after N different findings"),
    argument("--simd", action="store_true", help="compare XMM, MXCSR and x87 state too"),
    argument(
        "--stores",
        choices=("some", "all"),
        default="some",
        help="stores to look at: some, those into save areas and live frames once there is a reason, or all from the "
        "beginning, so that who overwrites a saved register but once is named, at twice the guest's time",
    ),
    argument("--rules", metavar="CODES", help="report only these codes: CW102,CW2xx"),
    argument("--stripped", action="store_true", help="boot a bundled guest without its symbols"),
    argument("--verbose", "-v", action="store_true", help="say what is done unasked; show whole contexts"),
)


def run(args: argparse.Namespace) -> int:
    """Run as the parsed arguments say; returns the exit status."""
    from gdbext.cli import running

    return running.run(running.request(args))


COMMAND = Command(
    name="run",
    summary="boot a guest and check every context it resumes",
    details="Boot a bundled guest, or your own QEMU command line after --, and hold every context that is resumed\n"
    "against the one that was interrupted. What ctxwatch needs is added to the command line (-v shows it): a\n"
    "stopped start, a QMP socket, a serial port to read. A guest that resets is paused and looked at.\n"
    "\n"
    "Exit status: 0 nothing found; 1 findings of severity error; 2 wrong usage or environment; 3 the guest or\n"
    "QEMU failed (did not start, died without a finding, --until not seen in time), or events were lost.",
    example="ctxwatch run nrk-rflags\n"
    "ctxwatch run clean-nrk --via gdbstub --json -\n"
    "ctxwatch run --kernel build/kernel.elf --until 'login:' -- qemu-system-x86_64 -m 256M -cdrom os.iso",
    arguments=ARGUMENTS,
    qemu=True,
    run=run,
    order=10,
)
