"""One declaration per command. Commands are discovered, not listed."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from gdbext.errors import UsageError
from gdbext.gdb.extension import Extension
from gdbext.gdb.needs import Needs

PREFIX: Final = "ctx"


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
