"""What a command declares about itself, and how all of them are found."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gdbext.cli import commands


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: its names, and what argparse's ``add_argument`` is to know of it."""

    names: tuple[str, ...]
    help: str
    options: dict[str, Any] = field(default_factory=dict)


def argument(*names: str, help: str, **options: Any) -> Argument:
    """Declare an argument the way ``add_argument`` is called."""
    return Argument(names, help, options)


@dataclass(frozen=True, slots=True)
class Command:
    """One ``ctxwatch`` command: everything help, parser and docs need to know.

    details: the long help.  example: lines that can be typed as they are.  qemu: the words after ``--`` are a QEMU
    command line, handed to `run` as ``args.qemu``.  run: does it and returns the exit status.
    """

    name: str
    summary: str
    details: str
    example: str
    run: Callable[[argparse.Namespace], int]
    arguments: tuple[Argument, ...] = ()
    qemu: bool = False
    order: int = 50
    """Place in the list of commands."""


def discover() -> list[Command]:
    """All commands, in the order in which help lists them."""
    return sorted(_commands(), key=lambda command: (command.order, command.name))


def _commands() -> Iterator[Command]:
    for module in pkgutil.iter_modules(commands.__path__):
        yield importlib.import_module(f"{commands.__name__}.{module.name}").COMMAND
