"""GDB's hooks, by which the safety mode hears of a command before it runs, however it was given.

A hook runs for a command typed, abbreviated, repeated by Enter, from a script or another command, and for those of
the machine interface that GDB makes of it (``-exec-step-instruction`` and its like). An error in it cancels the
command. It is not told the arguments.
"""

from __future__ import annotations

import contextlib
import textwrap
from typing import Final, Protocol

import gdb

from gdbext.errors import CtxwatchError
from gdbext.gdb import adapter
from gdbext.gdb.safetext import Refused, columns

STEPS: Final = ("stepi", "nexti", "step", "next", "until", "advance", "finish", "jump")
REVERSE: Final = ("reverse-stepi", "reverse-nexti", "reverse-step", "reverse-next", "reverse-finish")
RUNS: Final = (*STEPS, *REVERSE)
ON: Final = ("continue", "signal")
"""Never guarded; a command before may have failed."""
BREAKS: Final = ("break", "tbreak", "hbreak", "thbreak", "rbreak", "dprintf")
CALLS: Final = ("print", "call", "output", "printf", "eval", "display", "x")
RETURN: Final = "return"
"""It runs nothing, but takes RIP and RSP from what it thinks to be the frame."""

_GUARD: Final = "maintenance ctxwatch-guard"
_HOOKS: Final = (
    *(f"hook-{name}" for name in (*RUNS, RETURN, *ON, *BREAKS, *CALLS)),
    *(f"hookpost-{name}" for name in (*BREAKS, *CALLS)),
)


class Guard(Protocol):
    """What hears of commands; what it raises cancels the command, or ends it with an error."""

    def before(self, command: str) -> None:
        """`command` is about to run; may raise CtxwatchError."""

    def after(self, command: str) -> None:
        """`command` has run without an error; may raise CtxwatchError."""


class GuardCommand(gdb.Command):  # type: ignore[misc]  # GDB's classes have no types
    """Called by the safety mode's hooks; see help ctx safe."""

    def __init__(self, guard: Guard) -> None:
        super().__init__(_GUARD, gdb.COMMAND_MAINTENANCE)
        self._guard = guard

    def invoke(self, text: str, from_tty: bool) -> None:
        """``hook-stepi`` or ``hookpost-break``. (It leaves alone what Enter repeats: that is the hooked command.)"""
        when, _, command = text.partition("-")
        try:
            (self._guard.after if when == "hookpost" else self._guard.before)(command)
        except CtxwatchError as error:
            whole = error.whole() if isinstance(error, Refused) else str(error)
            if command in RUNS:
                adapter.cancelled(whole)
            if isinstance(error, Refused):
                whole = error.whole(columns())
            raise gdb.GdbError(whole) from None


class Hooks:
    """The hooks in GDB. A hook that the user has defined goes on behind ours, and is as it was when ours go."""

    def __init__(self, guard: Guard) -> None:
        GuardCommand(guard)
        self._users: dict[str, list[str]] = {}
        self._installed = False

    def install(self) -> None:
        """Hook the commands, once."""
        if self._installed:
            return
        self._installed = True
        for name in _HOOKS:
            body = _body(name)
            if _ours(body):
                continue
            self._users[name] = body or []
            _define(name, [f"{_GUARD} {name}", *self._users[name]])

    def remove(self) -> None:
        """Leave the user's own hooks alone; GDB cannot forget a hook, so others stay and do nothing."""
        self._installed = False
        for name in _HOOKS:
            body = _body(name)
            if _ours(body):
                _define(name, self._users.get(name, []))

    def missing(self) -> list[str]:
        """The hooks that somebody has put another in the place of since."""
        return [name for name in _HOOKS if self._installed and not _ours(_body(name))]


def _ours(body: list[str] | None) -> bool:
    return body is not None and any(_GUARD in line for line in body)


def _body(name: str) -> list[str] | None:
    """The lines of a user-defined command, None if there is none of that name."""
    # GDB takes hook-step for an abbreviation of hook-stepi, unless there is one of that name.
    if name not in str(gdb.execute(f"complete {name}", to_string=True)).split():
        return None
    try:
        shown = str(gdb.execute(f"show user {name}", to_string=True))
    except gdb.error:
        return None
    return textwrap.dedent(shown.partition("\n")[2]).strip("\n").splitlines()


def _define(name: str, body: list[str]) -> None:
    # Only a second definition is asked about. A parameter set and set back is told to front ends, each time.
    asked = _body(name) is not None
    with gdb.with_parameter("confirm", False) if asked else contextlib.nullcontext():
        gdb.execute("\n".join([f"define {name}", *body, "end"]), to_string=True)
