"""A run on the terminal: the guest's serial lines dimmed, findings as they come, a status line while waiting."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType
from typing import Final

from rich.status import Status
from rich.text import Text

from gdbext.errors import printable
from gdbext.report import text
from gdbext.rules.engine import Counts
from gdbext.rules.finding import Finding

_REFRESH: Final = 0.2
"""Seconds between two updates of the status line."""


class TerminalView:
    """Shows a run; a context manager that puts the terminal back.

    quiet: only notes, on standard error (machine output has standard output).  verbose: also what was done unasked,
    and every field of each finding's contexts.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self._quiet, self._verbose = quiet, verbose
        self._console = text.console()
        self._errors = text.console(stderr=True)
        self._status = Status("", console=self._console) if self._console.is_terminal and not quiet else None
        self._shown = 0.0
        self._told: list[tuple[Finding, str]] = []
        """The findings shown, each with its cause as it was told."""

    def note(self, text: str) -> None:
        """One line for a person, on standard error."""
        self._errors.print(Text(f"ctxwatch: {printable(text)}"), soft_wrap=True)

    def detail(self, text: str) -> None:
        """Like a note, with --verbose only."""
        if self._verbose:
            self.note(text)

    def serial(self, line: str) -> None:
        """A line of the guest, dimmed and escaped."""
        if not self._quiet:
            self._console.print(Text(f"  │ {printable(line)}", "dim"), soft_wrap=True)

    def finding(self, finding: Finding) -> None:
        """The finding's picture."""
        if not self._quiet:
            self._console.print()
            self._console.print(text.render_finding(finding, self._verbose))
            self._told.append((finding, finding.cause))

    def progress(self, counts: Counts, seconds: float) -> None:
        """Refresh the status line."""
        now = time.monotonic()
        if self._status is not None and now - self._shown > _REFRESH:
            self._shown = now
            events = f"{counts.entries} entries, {counts.exits} exits checked"
            self._status.update(Text(f"watching: {events}, {seconds:.0f} s (Ctrl-C ends it)", "dim"))

    def hold(self, invitation: str) -> None:
        """Show the command that looks at the halted guest; return at Enter, Ctrl-C or the end of input."""
        if self._status is not None:
            self._status.stop()
        self._errors.print(Text(f"ctxwatch: look at it with  {invitation}"), soft_wrap=True)
        self._errors.print(Text("ctxwatch: Enter ends it"))
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            input()

    def __enter__(self) -> TerminalView:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()
        for finding, told in self._told:
            if finding.cause != told:
                self._console.print()
                self._console.print(text.render_learnt(finding, told))
