"""``ctxwatch qemu-args``: the words that load the probe into one's own QEMU."""

from __future__ import annotations

import argparse
import os
import re
from typing import Final

from gdbext.cli.command import Command, argument
from gdbext.errors import UsageError

_LONGEST_SOCKET: Final = 107
"""Bytes in the path of a UNIX socket (unix(7))."""


def _run(args: argparse.Namespace) -> int:
    import shlex

    from gdbext.qemu import probe
    from gdbext.qemu.machine import which
    from gdbext.qemu.private import runtime_directory

    if "/" in args.name or not args.name:
        raise UsageError(f"--name {args.name} names no file", todo="leave the slash out")
    if re.fullmatch(r"[\w.-]+", args.name, re.ASCII) is None:
        raise UsageError(
            f"--name {args.name!r} is no plain name", "a shell would split it", "use letters, digits, dots, - and _"
        )
    stem = runtime_directory() / args.name
    if len(os.fsencode(stem)) + len(".qmp") > _LONGEST_SOCKET:
        raise UsageError(f"--name {args.name} is too long for a socket's path", todo="choose a shorter one")
    print(shlex.join(probe.attachable(probe.build(which(args.qemu)), stem, simd=args.simd)))
    return 0


COMMAND = Command(
    name="qemu-args",
    summary="print what to add to your own QEMU command line",
    details="Print the options that load the probe into a QEMU that you start yourself, from a script of yours for\n"
    "example. Its events then wait in a ring, the latest ones kept; `ctx watch` in a GDB attached to that guest finds\n"
    "it, and `ctxwatch replay RING` reads what is in it after the guest has died; the next guest moves it to\n"
    "RING.old. The probe is built first if needed. A -d with its -D of your own belongs behind them: the probe\n"
    "then does without QEMU's log, and looks at all stores of kernel code instead.",
    example="ctxwatch qemu-args\nqemu-system-x86_64 -kernel kernel.elf -s $(ctxwatch qemu-args)",
    arguments=(
        argument("--qemu", metavar="PROGRAM", default="qemu-system-x86_64", help="the QEMU it is for"),
        argument("--name", metavar="NAME", default="guest", help="names the ring and the socket, for several guests"),
        argument("--simd", action="store_true", help="capture XMM, MXCSR and x87 state too"),
    ),
    run=_run,
    order=55,
)
