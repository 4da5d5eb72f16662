"""Stops of the guest, told when GDB may be made to execute something.

GDB runs the commands attached to a breakpoint once everybody has been told of the stop, but also at the end of any
``gdb.execute``. One in a handler of the stop would run them in its midst, from where their ``continue`` or ``stepi``
never comes back. So what executes anything waits until they have run, and is left out if they let the guest go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gdbext.gdb import later
from gdbext.gdb.target import running


class Settling:
    """Calls `handler` once a stop: at once where no commands follow, else from :meth:`run`."""

    def __init__(self, handler: Callable[[], None]) -> None:
        self._handler = handler
        self._due = False

    def stop(self, event: Any) -> None:
        """The guest has stopped."""
        self._due = True
        if not commands_follow(event):
            self.run()
        else:
            later.post(self.run)

    def run(self) -> None:
        """What the last stop asks for, if that was not done yet: before a prompt, or a command that counts on it."""
        due, self._due = self._due, False
        if due and not running():
            self._handler()

    def drop(self) -> None:
        """The guest goes on."""
        self._due = False


def commands_follow(event: Any) -> bool:
    """Whether GDB is about to run commands of a breakpoint that it has stopped the guest at."""
    hit = getattr(event, "breakpoints", ())
    return any(breakpoint.is_valid() and breakpoint.commands for breakpoint in hit)
