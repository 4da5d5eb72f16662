"""A recording at the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from gdbext.recording.walk import Walk
from gdbext.repl.facts import Seen
from gdbext.repl.screen import Screen, rendered
from gdbext.report.walked import Line, Walked
from gdbext.rules.finding import Finding

ANSWERED: Final = ("status", "findings", "gs", "tcb", "explain")
"""What of ``ctx`` a recording answers."""


class Recorded:
    """The recording that is open and where it is looked at. Raises RecordingError where it is none."""

    def __init__(self, path: Path, screen: Screen, progress: Callable[[int], None] | None = None) -> None:
        self._walked = Walked(path, self._draw, progress)
        self.screen = screen

    @property
    def walk(self) -> Walk:
        """The cursor."""
        return self._walked.walk

    @property
    def event(self) -> int:
        """The event it stands at."""
        return self._walked.event

    def toolbar(self) -> list[str]:
        """What the status line says."""
        return self._walked.summary()

    async def run(self, line: str) -> None:
        """Answer one line. Raises CtxwatchError for what a recording cannot do."""
        self._show(self._walked.answer(line))

    def words(self, line: str) -> Sequence[str]:
        """What may come next on `line`."""
        registers = [register.name for register in self.walk.registers()]
        if "$" in line:
            return ["$pc", *(f"${name}" for name in registers)]
        first, *more = line.split(" ")
        if not more:
            return ("info registers", "x", "print", "ctx")
        if first in ("info", "i"):
            return registers if len(more) > 1 else ("registers",)
        if first == "ctx":
            return ANSWERED if len(more) == 1 else ()
        return self.walk.functions() if first.partition("/")[0] in ("x", "p", "print") else ()

    def here(self) -> None:
        """Say where it stands."""
        self._show(self._walked.here())

    def findings(self, columns: int) -> list[Seen]:
        """All findings of the recording."""
        return [
            Seen(found.code, found.name, found.event, found.count, (), _drawn(found, columns))
            for found in self.walk.findings
        ]

    def close(self) -> None:
        """Close the file."""
        self._walked.close()

    def _draw(self, finding: Finding) -> list[Line]:
        return [Line(_drawn(finding, self.screen.columns), "picture")]

    def _show(self, lines: Sequence[Line]) -> None:
        screen = self.screen
        show = {"text": screen.text, "note": screen.note, "error": screen.error, "picture": screen.ansi}
        for line in lines:
            if line.style == "gdb":
                screen.gdb(line.text + "\n")
            else:
                show[line.style](line.text)


def _drawn(finding: Finding, columns: int) -> str:
    from gdbext.report.text import render_finding

    return rendered(render_finding(finding), min(columns, 200))
