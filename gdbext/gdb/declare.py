"""One declaration per command, and the adapter that makes a GDB command of it. Commands are discovered, not listed."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import pkgutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from glob import escape, glob
from typing import TYPE_CHECKING, Final, NoReturn

import gdb

from gdbext.errors import CtxwatchError, UsageError
from gdbext.gdb.text import show
from gdbext.report.refusal import refusal

if TYPE_CHECKING:
    from gdbext.gdb.extension import Extension
    from gdbext.report.walked import Walked

PREFIX: Final = "ctx"


class Needs(Enum):
    """What must be so before a command runs."""

    NOTHING = "nothing"
    GUEST = "a guest that stands still"
    WATCH = "a watch, and its guest stands still"
    RUNNING_WATCH = "a watch, whatever its guest does"


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: ``name`` as argparse takes it (``--json`` or ``CODE``), its help, and further argparse keywords."""

    name: str
    help: str
    options: tuple[tuple[str, object], ...] = ()


def argument(name: str, help: str, **options: object) -> Argument:
    """Declare an argument."""
    return Argument(name, help, tuple(options.items()))


@dataclass(frozen=True, slots=True)
class Command:
    """``ctx NAME``. ``summary``: one line; ``text``: the long help; ``example``: lines a reader can type.

    ``run`` gets the extension and the parsed arguments (with ``text``, the line as it was typed) and raises
    CtxwatchError for what it refuses. ``complete``
    gives the words that may come next.
    """

    name: str
    summary: str
    text: str
    example: str
    run: Callable[[Extension, argparse.Namespace], None]
    arguments: tuple[Argument, ...] = ()
    needs: Needs = Needs.NOTHING
    complete: Callable[[], Sequence[str]] | None = None
    files: bool = False
    """Its argument is a file."""
    recorded: bool = False
    """While a recording is open, it is the recording that answers."""

    def usage(self) -> str:
        """``ctx watch [off] [--halt]``."""
        return self.parser().format_usage().removeprefix("usage: ").replace("\n", " ").strip()

    def help(self) -> str:
        """The help that GDB shows."""
        lines = [self.summary, f"Usage: {' '.join(self.usage().split())}", "", *_wrapped(self.text)]
        for one in self.arguments:
            lines += [
                "",
                f"  {one.name}",
                *textwrap.wrap(one.help, 76, initial_indent="    ", subsequent_indent="    "),
            ]
        lines += ["", "Example:", *(f"  (gdb) {line}" for line in self.example.strip().splitlines())]
        return "\n".join(lines)

    def parser(self) -> argparse.ArgumentParser:
        """The argument parser; it raises UsageError instead of ending the process."""
        parser = _Parser(prog=f"{PREFIX} {self.name}", add_help=False)
        for one in self.arguments:
            parser.add_argument(one.name, help=one.help, **dict(one.options))  # type: ignore[arg-type]
        return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}", todo=f"help {self.prog} tells more")


def _wrapped(text: str) -> Iterator[str]:
    for paragraph in textwrap.dedent(text).strip().split("\n\n"):
        yield from textwrap.wrap(" ".join(paragraph.split()), 78)
        yield ""


def discover() -> list[Command]:
    """Every ``COMMAND`` in the modules of gdbext.gdb.commands, by name."""
    package = importlib.import_module("gdbext.gdb.commands")
    modules = (importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__))
    return sorted((module.COMMAND for module in modules), key=lambda command: command.name)


class Prefix(gdb.Command):  # type: ignore[misc]  # GDB's classes have no types
    """Watch the contexts that the guest saves and resumes; see help ctx COMMAND."""

    def __init__(self) -> None:
        super().__init__(PREFIX, gdb.COMMAND_USER, gdb.COMPLETE_COMMAND, True)

    def invoke(self, text: str, from_tty: bool) -> None:
        """``ctx`` alone lists the commands, ``ctx help`` what it is given; any other word is no command."""
        word, *rest = text.split() or ["help"]
        if word == "help":
            gdb.execute(" ".join(["help", PREFIX, *rest]))
            return
        near = difflib.get_close_matches(word, [command.name for command in discover()], n=1)
        todo = f"did you mean {PREFIX} {near[0]}?" if near else f"help {PREFIX} lists them"
        raise gdb.GdbError(str(UsageError(f"there is no command {PREFIX} {word}", todo=todo)))


class Adapter(gdb.Command):  # type: ignore[misc]  # GDB's classes have no types
    """A declared command as GDB's."""

    def __init__(self, command: Command, extension: Extension) -> None:
        self.__doc__ = command.help()
        self._command = command
        self._extension = extension
        super().__init__(f"{PREFIX} {command.name}", gdb.COMMAND_USER)

    def invoke(self, text: str, from_tty: bool) -> None:
        """Parse, check what must be so, run; one line for what is refused."""
        self.dont_repeat()
        try:
            arguments = self._command.parser().parse_args(gdb.string_to_argv(text), argparse.Namespace(text=text))
            if self._extension.walked is not None and self._of_recording(self._extension.walked, text):
                return
            self._extension.check(self._command.needs)
            self._command.run(self._extension, arguments)
        except CtxwatchError as error:
            raise gdb.GdbError(str(error)) from None
        except gdb.error as error:
            raise gdb.GdbError(" ".join(str(error).split())) from None

    def _of_recording(self, walked: Walked, text: str) -> bool:
        """Have the open recording answer; False for a command that has nothing to do with a guest."""
        command = self._command
        if command.recorded:
            show(walked.answer(f"ctx {command.name} {text}"))
        elif command.needs is not Needs.NOTHING:
            raise refusal(f"ctx {command.name}")
        return command.recorded

    def complete(self, text: str, word: str) -> Sequence[str]:
        """Options, what the command itself offers, and files where it takes one. GDB completes from where it thinks
        that a word begins, which is behind a dash or a slash."""
        words = [one.name for one in self._command.arguments if one.name.startswith("-")]
        words += self._command.complete() if self._command.complete else ()
        typed = text.rpartition(" ")[2]
        if self._command.files:
            words += [f"{name}/" if os.path.isdir(name) else name for name in sorted(glob(f"{escape(typed)}*"))]
        return [candidate[len(typed) - len(word) :] for candidate in words if candidate.startswith(typed)]
