"""One declaration per command of the REPL; commands are discovered, not listed. All other commands are GDB's."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import shlex
import textwrap
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, TypeVar

from gdbext.errors import UsageError

Session = TypeVar("Session")
"""What commands act on."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument as argparse's ``add_argument`` takes it."""

    name: str
    help: str
    options: dict[str, Any] = field(default_factory=dict)


def argument(name: str, help: str, **options: Any) -> Argument:
    """Declare an argument."""
    return Argument(name, help, options)


def number(text: str) -> int:
    """The type of an argument that is a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


@dataclass(frozen=True, slots=True)
class Command(Generic[Session]):
    """One command of the REPL itself.

    ``summary``: one line; ``text``: the long help; ``example``: lines a reader can type; ``run`` gets the session and
    the parsed arguments and raises CtxwatchError for what it refuses; ``complete`` gives the words that may come next,
    and ``files`` says that they are file names; ``aliases``: other names for it; ``again``: an empty line repeats it;
    ``qemu``: the words after ``--`` are a QEMU command line, handed to `run` as ``args.qemu``.
    """

    name: str
    summary: str
    text: str
    example: str
    run: Callable[[Session, argparse.Namespace], Awaitable[None]]
    arguments: tuple[Argument, ...] = ()
    aliases: tuple[str, ...] = ()
    complete: Callable[[Session], Sequence[str]] | None = None
    files: bool = False
    again: bool = False
    qemu: bool = False
    topic: str = "commands"
    """Which topic of help lists it."""

    def parse(self, words: str) -> argparse.Namespace:
        """The arguments in what was typed after the name. Raises UsageError."""
        try:
            split = shlex.split(words)
        except ValueError as error:
            raise UsageError(f"{self.name}: {str(error).lower()}") from error
        qemu: list[str] = []
        if self.qemu and "--" in split:
            start = split.index("--")
            split, qemu = split[:start], split[start + 1 :]
        args = self._parser().parse_args(split)
        if self.qemu:
            args.qemu = qemu
        return args

    def help(self) -> str:
        """The help that ``help NAME`` shows."""
        usage = " ".join(self._parser().format_usage().removeprefix("usage: ").split())
        usage += " [-- QEMU ...]" if self.qemu else ""
        lines = [self.summary, f"Usage: {usage}", "", *_wrapped(self.text)]
        for one in self.arguments:
            shown = one.name if one.name.startswith("-") else str(one.options.get("metavar", one.name))
            lines += [f"  {shown}", *textwrap.wrap(one.help, 76, initial_indent="    ", subsequent_indent="    ")]
        if self.arguments:
            lines.append("")
        return "\n".join([*lines, "Example:", *(f"  {line}" for line in self.example.strip().splitlines())])

    def _parser(self) -> argparse.ArgumentParser:
        parser = _Parser(prog=self.name, add_help=False, allow_abbrev=False)
        for one in self.arguments:
            parser.add_argument(one.name, help=one.help, **one.options)
        return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message.removeprefix('argument ')}", todo=f"help {self.prog} tells more")


def _wrapped(text: str) -> Iterator[str]:
    for paragraph in textwrap.dedent(text).strip().split("\n\n"):
        yield from textwrap.wrap(" ".join(paragraph.split()), 78)
        yield ""


def discover(package: str) -> dict[str, Command[Any]]:
    """Every ``COMMAND`` in the modules of `package`, by name and by alias."""
    root = importlib.import_module(package)
    modules = (importlib.import_module(f"{package}.{module.name}") for module in pkgutil.iter_modules(root.__path__))
    found: dict[str, Command[Any]] = {}
    for module in modules:
        for name in (module.COMMAND.name, *module.COMMAND.aliases):
            assert name not in found, f"two commands are called {name}"
            found[name] = module.COMMAND
    return found
