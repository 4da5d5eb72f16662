"""The entry point: parse, run, and turn every refusal into one line and an exit status."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from gdbext import __version__
from gdbext.cli.command import Command, discover
from gdbext.cli.output import reader_left, settle
from gdbext.errors import CtxwatchError, UsageError, printable

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Terminated(BaseException):
    """SIGTERM or SIGHUP came; raised so that everything on the way out cleans up."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a UsageError of one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, todo=f"see `{self.prog} --help`")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """As argparse does up to Python 3.11; later it keeps silent about an output that takes nothing."""
        if message:
            (file or sys.stderr).write(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ctxwatch`` with `argv` (default: the process's) and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    settle()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _terminate)
    try:
        status = _run(words)
        sys.stdout.flush()
    except CtxwatchError as error:
        status = _refuse(error)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except Terminated as error:
        status = 128 + error.signum
    except BrokenPipeError:
        status = reader_left()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full:
            reader_left()  # what it could not take must not be tried again
        status = _refuse(UsageError("cannot write the output", error.strerror or "") if full else _failed(error))
    except Exception as error:
        status = _refuse(_failed(error))
    return status


def _failed(error: Exception) -> CtxwatchError:
    return CtxwatchError(
        "ctxwatch failed",
        f"{type(error).__name__}: {error}",
        "CTXWATCH_TRACEBACK=1 shows where; please report it",
    )


def _run(words: list[str]) -> int:
    commands = {command.name: command for command in discover()}
    parser = _parser(commands)
    if not words:
        parser.print_help()
        return 0
    name = next((word for word in words if not word.startswith("-")), None)
    if name is not None and name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        todo = f"did you mean {near[0]}?" if near else "see `ctxwatch --help`"
        raise UsageError(f"there is no command {name!r}", todo=todo)
    if words[0] == "--":  # which argparse refuses or passes over, depending on its version
        raise UsageError("no command stands in front of '--'", todo="see `ctxwatch --help`")
    qemu: list[str] = []
    if name is not None and commands[name].qemu and "--" in words:
        split = words.index("--")
        words, qemu = words[:split], words[split + 1 :]
    try:
        args, unknown = parser.parse_known_args(words)
    except SystemExit:  # help or version is shown; what is wrong raises UsageError
        return 0
    command: Command | None = args.command
    if command is None:
        raise UsageError(f"unknown argument {words[0]!r}", todo="see `ctxwatch --help`")
    if unknown:
        todo = f"see `ctxwatch {command.name} --help`"
        if command.qemu and not qemu:
            todo += "; a QEMU command line goes after --"
        raise UsageError(f"unknown argument {unknown[0]!r}", todo=todo)
    if command.qemu:
        args.qemu = qemu
    return command.run(args)


def _parser(commands: dict[str, Command]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ctxwatch",
        description="Watch every interrupt, exception and system call of an x86 guest in QEMU, and name the first\n"
        "context that is resumed wrong, with its cause.",
        epilog="Exit status: 0 nothing found, 1 findings, 2 wrong usage or environment, 3 the guest or QEMU failed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ctxwatch {__version__}")
    group = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    parser.set_defaults(command=None)
    for command in commands.values():
        sub = group.add_parser(
            command.name,
            help=command.summary,
            description=command.details,
            epilog=f"example:\n  {command.example.replace(chr(10), chr(10) + '  ')}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for item in command.arguments:
            sub.add_argument(*item.names, help=item.help, **item.options)
        if command.qemu:
            sub.usage = f"{sub.format_usage().removeprefix('usage: ').rstrip()} [-- QEMU ...]"
        sub.set_defaults(command=command)
    return parser


def _refuse(error: CtxwatchError) -> int:
    if os.environ.get("CTXWATCH_TRACEBACK"):
        import traceback

        traceback.print_exc()
    print(f"ctxwatch: {printable(str(error))}", file=sys.stderr)
    return error.status


def _terminate(signum: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
    raise Terminated(signum)
