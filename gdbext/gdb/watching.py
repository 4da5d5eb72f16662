"""What a watch is to the rest of the extension, whichever way the events come."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from gdbext.errors import CtxwatchError
from gdbext.gdb.judging import Judging
from gdbext.gdb.target import Target
from gdbext.report.document import QemuFacts
from gdbext.rules.gslog import GsLog


class Watching(Protocol):
    """From ``ctx watch`` to ``ctx watch off``, on one connection. For GDB's own thread."""

    target: Target
    gs: GsLog
    failed: CtxwatchError | None
    """Why nothing is watched any more, or None."""

    @property
    def judging(self) -> Judging | None:
        """The rules at work; None where the events are judged elsewhere."""

    @property
    def armed(self) -> bool:
        """Events can come; False while the guest has not loaded an IDT yet."""

    def held(self) -> AbstractContextManager[None]:
        """Nothing is judged meanwhile: findings, counts and GS may be read."""

    def beginning(self) -> str:
        """What is told when it begins."""

    def ending(self) -> str:
        """What is told of a watch that has ended, as a clause."""

    def status(self) -> list[str]:
        """What is watched, line by line."""

    def record(self, path: Path, guest: str, qemu: QemuFacts, note: Callable[[str], None]) -> None:
        """Record from now on; raises CtxwatchError."""

    def end_recording(self) -> Path | None:
        """End the recording; where it is, None if there was none. Raises CtxwatchError where the guest must stand
        still for it."""

    def stopped(self) -> str:
        """The guest stands still: why, if the watch stopped it and GDB has not said so; else ""."""

    def tidy(self) -> None:
        """The guest stands still for the user: what it did until now takes effect."""

    def shut_down(self, died: bool) -> None:
        """QEMU has stopped the machine for good; `died`: the guest did not ask for it."""

    def close(self) -> None:
        """Remove everything; the target is stopped or gone. Idempotent."""
