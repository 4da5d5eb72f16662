"""The prefix ``ctx`` in GDB, and the GDB command that is made of each declaration."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Sequence
from glob import escape, glob
from typing import TYPE_CHECKING

import gdb

from gdbext.errors import CtxwatchError, UsageError
from gdbext.gdb.declare import PREFIX, Command, discover
from gdbext.gdb.extension import Extension
from gdbext.gdb.needs import Needs
from gdbext.gdb.text import show
from gdbext.report.refusal import refusal

if TYPE_CHECKING:
    from gdbext.report.walked import Walked


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
