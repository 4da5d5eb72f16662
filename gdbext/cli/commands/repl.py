"""``ctxwatch repl``: a prompt over a guest or a recording."""

from __future__ import annotations

import argparse
import os
import shlex

from gdbext.cli.command import Command, argument
from gdbext.errors import UsageError


def _run(args: argparse.Namespace) -> int:
    first = _first(args)  # a mistake is told before anything is loaded
    from gdbext.repl import main

    return main.run(main.Request(first, args.keys))


def _first(args: argparse.Namespace) -> str:
    """The REPL's own command that the arguments stand for."""
    if sum(map(bool, (args.what, args.connect, args.qemu))) > 1:
        raise UsageError(
            "what to open is not clear", todo="name one: a guest or a recording, --connect, or a QEMU command line"
        )
    kernel = ("--kernel", args.kernel) if args.kernel is not None else ()
    if args.qemu:
        return shlex.join(["boot", *kernel, "--", *args.qemu])
    if args.connect is not None:
        return shlex.join(["connect", args.connect, *kernel])
    if kernel:
        raise UsageError(
            "--kernel goes with --connect or a QEMU command line", todo="leave it out: the others bring their symbols"
        )
    if args.what is None:
        return ""
    from gdbext.qemu import guests

    if os.path.exists(args.what) or "/" in args.what or "." in args.what:  # no guest has a dot in its name
        return shlex.join(["open", args.what])
    return shlex.join(["boot", guests.find(args.what).name])


COMMAND = Command(
    name="repl",
    summary="a prompt over a guest or a recording, with GDB behind it",
    details="Boot a bundled guest or your own QEMU command line after --, connect to the gdbstub of a QEMU that runs\n"
    "already, or walk a recording, at a prompt that stays usable while the guest runs. All of GDB's commands work,\n"
    "with ctxwatch's loaded (`ctx watch`). What the guest prints and what is found appears above the prompt; Ctrl-C\n"
    "stops the guest, Ctrl-D leaves. `help` at the prompt tells more. Lines on standard input are run one after the\n"
    "other where it is no terminal.",
    example="ctxwatch repl nrk-rflags\n"
    "ctxwatch repl -- qemu-system-x86_64 -kernel build/kernel.elf\n"
    "ctxwatch repl --connect localhost:1234 --kernel build/kernel.elf\n"
    "ctxwatch repl run.arrow",
    arguments=(
        argument("what", nargs="?", metavar="GUEST|FILE", help="a bundled guest to boot, or a recording to walk"),
        argument("--connect", metavar="HOST:PORT", help="a gdbstub that listens there, or at a UNIX socket's path"),
        argument("--kernel", metavar="FILE", help="the kernel with its symbols: an ELF file"),
        argument("--keys", choices=("emacs", "vi"), help="editing keys; repl.toml sets them for good"),
    ),
    qemu=True,
    run=_run,
    order=15,
)
