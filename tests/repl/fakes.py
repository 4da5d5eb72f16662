"""A GDB that is none, a screen in memory, and a terminal that a test types at and reads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pyte
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output

from gdbext.repl.config import Config
from gdbext.repl.debugger import GdbGone, Refused, Starter
from gdbext.repl.mi import Record
from gdbext.repl.prompt import Prompt
from gdbext.repl.screen import TerminalScreen
from gdbext.repl.session import Session

ROWS, COLUMNS = 30, 100


def scenario(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine, which may take 100 seconds."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 200))

    return run


def notify(name: str, **data: Any) -> Record:
    return Record("notify", name, data=data)


class FakeGdb:
    """Answers as a GDB with the extension would: a guest that can be connected to, run and stopped."""

    def __init__(self, record: Callable[[Record], None], ended: Callable[[str], None]) -> None:
        self.record, self.ended = record, ended
        self.alive = True
        self.asked: list[str] = []
        self.signals = 0
        self.refuse: dict[str, str] = {}
        self.hold: dict[str, asyncio.Event] = {}
        self.print: dict[str, str] = {}
        self.state: dict[str, Any] = {"watching": "no", "events": "0", "findings": "0"}
        self.findings: list[dict[str, Any]] = []
        self.completions: dict[str, list[str]] = {}
        self.running = False
        self.closed = False

    async def ask(self, command: str) -> dict[str, Any]:
        if not self.alive:
            raise GdbGone("GDB is not running")
        self.asked.append(command)
        if command == "-ctx-state":
            return self.state
        if command.startswith("-ctx-findings"):
            return {"findings": self.findings}
        if command == "-data-list-register-names":
            return {"register-names": ["rax", "rbx", "", "r10"]}
        if command.startswith("-complete "):
            return {"matches": self.completions.get(command.removeprefix("-complete ").strip('"'), [])}
        if command == "-exec-interrupt":
            self.stop()
            return {}
        return await self._console(command.removeprefix("-interpreter-exec console ").strip('"'))

    async def _console(self, command: str) -> dict[str, Any]:
        for start, gate in self.hold.items():
            if command.startswith(start):
                await gate.wait()
        for start, message in self.refuse.items():
            if command.startswith(start):
                error = Refused(message)
                self.record(Record("log", text=message + "\n"))
                error.told = True
                raise error
        if "target remote" in command:
            self.record(notify("thread-group-started"))
            self.record(notify("stopped"))
        elif command in ("continue &", "c &"):
            self.running = True
            self.record(notify("running"))
        elif command in ("detach", "kill"):
            self.record(notify("thread-group-exited"))
        if command in self.print:
            self.record(Record("console", text=self.print[command]))
        return {}

    def stop(self) -> None:
        self.running = False
        self.record(Record("console", text="\nProgram received signal SIGINT, Interrupt.\n"))
        self.record(notify("stopped", reason="signal-received"))

    def interrupt(self) -> None:
        self.signals += 1
        for gate in self.hold.values():
            gate.set()

    def kill(self) -> None:
        for gate in self.hold.values():
            gate.set()
        self.die()

    def die(self, how: str = "killed by SIGKILL") -> None:
        self.alive = False
        self.ended(how)

    async def close(self) -> None:
        self.closed, self.alive = True, False

    def commands(self) -> list[str]:
        """What was run as if typed."""
        mark = "-interpreter-exec console "
        return [one.removeprefix(mark).strip('"') for one in self.asked if one.startswith(mark)]


class FakeGdbs:
    """Starts fake GDBs and remembers them."""

    def __init__(self, setup: Callable[[FakeGdb], None] = lambda gdb: None) -> None:
        self.all: list[FakeGdb] = []
        self._setup = setup

    async def start(self, record: Callable[[Record], None], ended: Callable[[str], None]) -> FakeGdb:
        gdb = FakeGdb(record, ended)
        self._setup(gdb)
        self.all.append(gdb)
        return gdb

    @property
    def gdb(self) -> FakeGdb:
        return self.all[-1]


class MemoryScreen:
    """Keeps what is shown, escaped as the terminal would: lines of (kind, text)."""

    columns = 100

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def gdb(self, text: str) -> None:
        self.lines.append(("gdb", text))

    def log(self, text: str) -> None:
        self.lines.append(("log", text))

    def serial(self, line: str) -> None:
        self.lines.append(("serial", line))

    def note(self, text: str) -> None:
        self.lines.append(("note", text))

    def error(self, text: str) -> None:
        self.lines.append(("error", text))

    def text(self, text: str) -> None:
        self.lines.append(("text", text))

    def ansi(self, text: str) -> None:
        self.lines.append(("ansi", text))

    def end_line(self) -> None:
        pass

    def of(self, kind: str) -> list[str]:
        return [text for one, text in self.lines if one == kind]


class _Stream:
    """Where the terminal's bytes go: into a pyte screen, which also tells where its cursor is when asked."""

    encoding = "utf-8"

    def __init__(self, screen: pyte.Screen, answer: Callable[[str], None]) -> None:
        self._screen, self._stream, self._answer = screen, pyte.Stream(screen), answer

    def write(self, text: str) -> int:
        self._stream.feed(text)
        if "\x1b[6n" in text:
            self._answer(f"\x1b[{self._screen.cursor.y + 1};{self._screen.cursor.x + 1}R")
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError("no file")


class Terminal:
    """A REPL on a terminal of its own: what is typed, and what the screen shows."""

    def __init__(self, pipe: PipeInput, screen: pyte.Screen, session: Session, prompt: Prompt, gdbs: FakeGdbs) -> None:
        self._pipe, self._screen = pipe, screen
        self.session, self.prompt, self.gdbs = session, prompt, gdbs
        self.task: asyncio.Task[int] | None = None

    @property
    def gdb(self) -> FakeGdb:
        return self.gdbs.gdb

    def type(self, text: str) -> None:
        self._pipe.send_text(text)

    def paste(self, text: str) -> None:
        self._pipe.send_text(f"\x1b[200~{text}\x1b[201~")

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display)

    @property
    def toolbar(self) -> str:
        return next((line for line in reversed(self.text().split("\n")) if line), "")

    async def until(self, *wanted: str, absent: str = "", seconds: float = 60.0) -> str:
        """Wait until the screen shows all of `wanted` (and not `absent`)."""
        deadline = time.monotonic() + seconds
        wanted = tuple(one.rstrip() for one in wanted)
        while not all(one in self.text() for one in wanted) or (absent and absent in self.text()):
            assert time.monotonic() < deadline, f"{wanted} not on the screen:\n{self.text()}"
            await asyncio.sleep(0.01)
        return self.text()

    async def happens(self, what: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait until `what` gives something true."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"it never came:\n{self.text()}"
            await asyncio.sleep(0.01)

    async def ended(self) -> int:
        assert self.task is not None
        return await asyncio.wait_for(self.task, 60.0)


@asynccontextmanager
async def terminal(
    first: str = "",
    config: Config | None = None,
    history: History | None = None,
    setup: Callable[[FakeGdb], None] = lambda gdb: None,
    start: Starter | None = None,
) -> AsyncIterator[Terminal]:
    """A REPL on a pyte terminal, with fake GDBs unless `start` starts others; it is left at the end."""
    view = pyte.Screen(COLUMNS, ROWS)
    gdbs = FakeGdbs(setup)
    with contextlib.ExitStack() as stack:
        pipe = stack.enter_context(create_pipe_input())
        output = Vt100_Output(_Stream(view, pipe.send_text), lambda: Size(ROWS, COLUMNS), term="xterm")  # type: ignore[arg-type]
        stack.enter_context(create_app_session(input=pipe, output=output))
        screen = TerminalScreen()
        session = Session(screen, config, start or gdbs.start, lambda question: prompt.ask(question))
        prompt = Prompt(session, screen, history or InMemoryHistory(), pipe, output)
        ready = Terminal(pipe, view, session, prompt, gdbs)
        ready.task = asyncio.ensure_future(prompt.loop(first))
        try:
            yield ready
        finally:
            ready.task.cancel()
            await asyncio.gather(ready.task, return_exceptions=True)
            await session.close()
