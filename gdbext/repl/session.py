"""What becomes of a typed line: a command of ours, one for a recording, or one for GDB."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gdbext.errors import CtxwatchError, UsageError
from gdbext.repl import blocks, declare, typed
from gdbext.repl.config import Config
from gdbext.repl.debugger import Gdb, Starter
from gdbext.repl.facts import Seen
from gdbext.repl.live import Ask, Live, Silent
from gdbext.repl.screen import Screen
from gdbext.report.refusal import moves

if TYPE_CHECKING:
    from gdbext.repl.recorded import Recorded

COMMANDS: Final = "gdbext.repl.commands"


async def _yes(question: str) -> bool:
    return True


class Session:
    """Everything behind the prompt. ``ask`` asks the user a yes-or-no question; without it the answer is yes.

    ``leaving`` is set by the command that ends the REPL.
    """

    def __init__(
        self, screen: Screen, config: Config | None = None, start: Starter = Gdb.start, ask: Ask = _yes
    ) -> None:
        self.screen = screen
        self.config = config or Config()
        self.live = Live(screen, start, ask)
        self.recorded: Recorded | None = None
        self.commands: dict[str, declare.Command[Session]] = declare.discover(COMMANDS)
        self.leaving = False
        self.reading = ""
        """Which recording is being opened, and how far, as a clause."""
        self._given_up: threading.Event | None = None
        self._again = ""

    def command(self, line: str) -> tuple[declare.Command[Session], str] | None:
        """The command of ours that `line` is, with what follows its name."""
        name, _, words = line.strip().partition(" ")
        if self.recorded is not None and name == "ctx":  # nobody else has such commands now
            name, _, words = words.strip().partition(" ")
        command = self.commands.get(name)
        return (command, words) if command is not None else None

    async def run(self, text: str) -> bool:
        """Do what was typed or pasted: line by line, a block of GDB's as a whole. What is typed behind a command that
        lets the guest run waits until it stands; what is typed behind one that is refused is not done, and False
        returned."""
        parts = [part for part in blocks.split(text) if part.strip()] or [self._again]
        for index, part in enumerate(parts):
            done = await self.execute(part)
            left = parts[index + 1 :]
            if left and not done:
                self.screen.note(f"{_behind(left)} not run")
            if not done or self.leaving:
                return done
            if left and moves(part):
                await self.live.stopped()
        return True

    async def execute(self, line: str) -> bool:
        """Run one command; a refusal is shown in one line and False returned."""
        try:
            await self.do(line)
        except Silent:
            return False
        except CtxwatchError as error:
            self.screen.error(str(error))
            return False
        return True

    async def do(self, line: str) -> None:
        """Run one command. Raises CtxwatchError for what is refused, Silent if GDB has told so."""
        if not line.strip() or line.lstrip().startswith("#"):
            return
        ours = self.command(line)
        self._again = self._repeated(line)
        if ours is not None:
            command, words = ours
            await command.run(self, command.parse(words))
        elif self.recorded is not None:
            await self.recorded.run(line)
        else:
            await self.live.run(line)

    def _repeated(self, line: str) -> str:
        """What an empty line runs after `line`: of GDB's commands what GDB would repeat, of ours what moves."""
        ours = self.command(line)
        if ours is not None:
            return line if ours[0].again else ""
        return typed.again(line) if self.recorded is None else ""

    async def findings(self) -> list[Seen]:
        """What was found: in the recording that is open, else in this REPL's life."""
        if self.recorded is not None:
            return self.recorded.findings(self.screen.columns)
        await self.live.gather_findings()
        return self.live.findings.all()

    def recording(self) -> Recorded:
        """The recording that is open. Raises UsageError if there is none."""
        if self.recorded is None:
            raise UsageError("no recording is open", todo="open FILE first")
        return self.recorded

    async def read(self, path: Path) -> Recorded:
        """A recording, ready to be walked: the rules go through all of it once, minutes for a hundred million events,
        during which the prompt stays usable. Raises RecordingError, and CtxwatchError when it was given up."""
        from gdbext.repl.recorded import Recorded

        if self._given_up is not None:
            raise CtxwatchError("a recording is being opened", todo="Ctrl-C gives it up")
        given_up = self._given_up = threading.Event()
        self.reading = f"opening {path.name}"

        def progress(events: int) -> None:
            self.reading = f"opening {path.name}: {events / 1e6:.1f} million events"
            if given_up.is_set():
                raise CtxwatchError(f"opening {path} was given up")

        try:
            return await asyncio.to_thread(Recorded, path, self.screen, progress)
        finally:
            given_up.set()
            self._given_up, self.reading = None, ""

    @property
    def interruptible(self) -> bool:
        """Whether there is something a Ctrl-C would stop."""
        return self._given_up is not None or self.live.interruptible

    def interrupt(self) -> None:
        """A Ctrl-C: give up opening a recording, else stop the guest, or what GDB is at."""
        if self._given_up is not None:
            self._given_up.set()
        else:
            self.live.interrupt()

    async def take_recording(self, recorded: Recorded) -> None:
        """Look at `recorded` from now on; the guest or recording before it is left."""
        self.close_recording()
        await self.live.leave()
        self.recorded = recorded

    def close_recording(self) -> None:
        """Close the recording that is open, if there is one."""
        if self.recorded is not None:
            self.recorded.close()
            self.recorded = None

    @property
    def something_runs(self) -> str:
        """What would be ended or left behind if the REPL ended now, as a clause; "" if nothing is."""
        link, connection = self.live.link, self.live.connection
        if self.live.interruptible and self.live.doing:
            return f"GDB is at {self.live.doing!r}"
        if link is not None and connection.connected:
            return f"{link.title} is {connection.state.value}" + (" and ends with the REPL" if link.ours else "")
        return ""

    async def close(self) -> None:
        """Leave everything."""
        if self._given_up is not None:
            self._given_up.set()
        self.close_recording()
        await self.live.close()


def _behind(parts: Sequence[str]) -> str:
    return "the command behind it was" if len(parts) == 1 else f"the {len(parts)} commands behind it were"
