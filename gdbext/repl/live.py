"""The live side: a GDB that is followed by what it says, and commands for it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from gdbext.errors import CtxwatchError
from gdbext.repl import mi, typed
from gdbext.repl.attach import attach, forget
from gdbext.repl.connection import Connection, State
from gdbext.repl.debugger import Debugger, GdbGone, Refused, Starter
from gdbext.repl.facts import Facts, Findings
from gdbext.repl.links import AddressLink, Link
from gdbext.repl.mi import Record
from gdbext.repl.screen import Screen

SERIAL_TICK: Final = 0.05
"""Seconds between two looks at the guest's serial port."""
REFRESH: Final = 0.5
"""Seconds between two questions for the state of a running guest."""
_SETTLE: Final = 0.1
"""Seconds in which changes gather before the extension is asked about them."""
_TRIES: Final = 10
_PRESSES: Final = 3
"""A GDB that does not heed so many Ctrl-C hangs: the next one ends it."""
_TRY: Final = 0.3
"""A running guest is asked to stop that often, and gets that long each time: GDB forgets an interrupt that comes
while the guest stands in a breakpoint of the watch."""

_FINDING: Final = re.compile(r"ctxwatch: CW\d{3} ")
_RUNS: Final = re.compile(r"(thread|target) is running", re.IGNORECASE)

Ask = Callable[[str], Awaitable[bool]]


class Live:
    """GDB, the guest behind it, and where we stand with them.

    start: starts a GDB.  ask: asks the user a yes-or-no question.
    """

    def __init__(self, screen: Screen, start: Starter, ask: Ask) -> None:
        self.screen = screen
        self.connection = Connection()
        self.facts = Facts()
        self.findings = Findings()
        self.link: Link | None = None
        self.debugger: Debugger | None = None
        self.doing = ""
        """The command that GDB is at now."""
        self._start, self._ask = start, ask
        self._quiet = False
        self._one_at_a_time = asyncio.Lock()
        self._starting = asyncio.Lock()
        self._connecting: asyncio.Task[None] | None = None
        self._held: list[str] = []
        self._holding = False
        self._pressed = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._refreshing: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._new_findings = False
        self._tells = True
        self.connection.watch(self._changed)

    # Connecting

    async def connect(self, link: Link) -> None:
        """Reach the guest of `link` and leave the one before. Raises CtxwatchError and is idle if that fails."""
        if self._connecting is not None:
            raise CtxwatchError("already connecting", todo="Ctrl-C gives it up")
        if self.link is not link:
            await self.leave()
        self.connection.move(State.IDLE)
        self.connection.move(State.CONNECTING)
        self._connecting = asyncio.ensure_future(self._connect(link))
        try:
            await self._connecting
        except asyncio.CancelledError:
            raise CtxwatchError(f"connecting to {link.title} was given up") from None
        finally:
            self._connecting = None

    async def _connect(self, link: Link) -> None:
        self.doing, self._quiet = f"connecting to {link.title}", True
        try:
            endpoint, _ = await asyncio.gather(link.open(), self.ensure_debugger())
            assert self.debugger is not None
            await forget(self.debugger)
            await attach(self.debugger, endpoint)
        except BaseException:
            await link.close()
            self.connection.move(State.IDLE)
            raise
        finally:
            self.doing, self._quiet = "", False
            self.link = link
        self.connection.move(State.STOPPED)
        if self._following is not None:
            self._following.cancel()
        self._following = self._spawn(self._follow(link))

    async def reconnect(self) -> None:
        """Start what is gone again, GDB or QEMU, and connect to the same guest."""
        if self.link is None:
            if self.debugger is None or not self.debugger.alive:
                await self.ensure_debugger()
                self.connection.move(State.IDLE)
                return
            raise CtxwatchError("there is nothing to reconnect to", todo="`boot GUEST` or `connect HOST:PORT` first")
        if self.connection.connected:
            raise CtxwatchError(f"{self.link.title} is connected")
        await self.connect(self.link)

    async def leave(self) -> None:
        """Leave the guest: one of ours ends, another goes on without us."""
        link, self.link = self.link, None
        if self.debugger is not None and self.debugger.alive:
            await self._halt()
            self._quiet = True
            await forget(self.debugger)
            self._quiet = False
        if self.connection.state is not State.CONNECTING:
            self.connection.move(State.IDLE)
        if link is not None:
            await link.close()

    async def ensure_debugger(self) -> None:
        """Have a GDB. Raises EnvironmentUnusable if there can be none."""
        async with self._starting:  # the one of a guest that could not be had may be on its way
            if self.debugger is None or not self.debugger.alive:
                if self.debugger is not None:
                    await self.debugger.close()
                self._tells = True
                self.findings.another_gdb()
                self.debugger = await self._start(self._take, self._gdb_ended)

    # Commands

    async def run(self, command: str) -> None:
        """Have GDB run what was typed; its output goes to the screen as it comes.

        Raises CtxwatchError if GDB is not there, is busy with the running guest, or refuses.
        """
        if self._connecting is not None:
            await asyncio.wait((self._connecting,))
        running = self.connection.state is State.RUNNING
        if running and command.strip() == "interrupt":
            await self._halt()  # GDB's own may be lost
            return
        if self._one_at_a_time.locked() and running:
            raise CtxwatchError(f"GDB waits for the guest in {self.doing!r}", todo="Ctrl-C interrupts it")
        if running and typed.needs_rest(command):
            raise CtxwatchError("the guest is running", todo="Ctrl-C stops it")
        await self._permit(command)
        async with self._one_at_a_time:
            self.doing, self._pressed = command, 0
            # What GDB says of a guest that runs takes three lines; we say it in one.
            self._holding = self.connection.state is State.RUNNING
            try:
                await self._ask_gdb(command)
                self._drop_held(show=True)
            except Refused as error:
                if self._holding and _RUNS.search(error.what):
                    self._drop_held(show=False)
                    raise CtxwatchError("the guest is running", todo="Ctrl-C stops it") from error
                self._drop_held(show=True)
                raise Silent(error.what) if error.told else error from None
            finally:
                self.doing = ""
                self._drop_held(show=True)
                self.screen.end_line()
        address = typed.target(command)
        if address is not None and self.connection.connected:
            with contextlib.suppress(CtxwatchError):
                self.link = AddressLink(address)

    async def _ask_gdb(self, command: str) -> None:
        if self.debugger is None:
            await self.ensure_debugger()
        assert self.debugger is not None
        if "\n" not in command:
            await self.debugger.ask(mi.console(typed.background(typed.harmless(command))))
            return
        # GDB reads a block of lines from a script alone.
        with tempfile.TemporaryDirectory(prefix="ctxwatch-") as directory:
            script = Path(directory) / "typed.gdb"
            script.write_text(command + "\n", "utf-8", "surrogateescape")
            await self.debugger.ask(mi.console(f"source {script}"))

    async def _permit(self, command: str) -> None:
        """Ask what GDB would ask, which takes a yes for granted where it has no terminal."""
        if self.connection.connected and typed.ends_guest(command):
            what = self.link.title if self.link is not None else "the guest"
            if not await self._ask(f"{command!r} ends the session with {what}. Go on?"):
                raise CtxwatchError("not done")

    async def stopped(self) -> None:
        """Return when the guest does not run (any more)."""
        while self.connection.state is State.RUNNING:
            await asyncio.sleep(0.02)

    def interrupt(self) -> None:
        """A Ctrl-C: stop the guest, or the command that GDB is at, or the connecting."""
        if self._connecting is not None:
            self._connecting.cancel()
        elif self.debugger is not None and self._one_at_a_time.locked():
            self._pressed += 1
            if self._pressed > _PRESSES:
                self.debugger.kill()
            else:
                self.debugger.interrupt()
        elif self.connection.state is State.RUNNING:
            self._spawn(self._halt())

    @property
    def interruptible(self) -> bool:
        """Whether there is something a Ctrl-C would stop."""
        busy = self._one_at_a_time.locked() or self._connecting is not None
        return busy or self.connection.state is State.RUNNING

    async def _halt(self) -> None:
        """Have a running guest stop, as far as it can be had."""
        if self.debugger is None:
            return
        with contextlib.suppress(Refused, GdbGone):
            for _ in range(_TRIES):
                if self.connection.state is not State.RUNNING:
                    return
                if self._one_at_a_time.locked():  # GDB listens to nothing but signals now
                    self.debugger.interrupt()
                else:
                    await self.debugger.ask("-exec-interrupt")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopped(), _TRY)
            if self.connection.state is State.RUNNING:
                self.debugger.interrupt()

    async def complete(self, text: str) -> list[str]:
        """GDB's completions of a command line, each a whole line; none while GDB is busy."""
        if self.debugger is None or not self.debugger.alive or self._one_at_a_time.locked():
            return []
        try:
            answer = await asyncio.wait_for(self.debugger.ask(f"-complete {mi.quoted(text)}"), 2.0)
        except (CtxwatchError, TimeoutError):
            return []
        return [str(match) for match in answer.get("matches", [])]

    async def registers(self) -> list[str]:
        """The names of the guest's registers; none while they cannot be had."""
        if self.debugger is None or not self.debugger.alive or self._one_at_a_time.locked():
            return []
        try:
            answer = await self.debugger.ask("-data-list-register-names")
        except CtxwatchError:
            return []
        return [str(name) for name in answer.get("register-names", []) if name]

    async def close(self) -> None:
        """Leave the guest and end GDB; findings stay."""
        await self.gather_findings()
        await self.leave()
        if self.debugger is not None:
            await self.debugger.close()
        for task in list(self._tasks):
            task.cancel()

    # What GDB says

    def _take(self, record: Record) -> None:
        if record.kind in ("console", "target", "output"):
            if _FINDING.match(record.text):
                self._new_findings = True
                self._refresh_soon()
            if not self._quiet:
                self.screen.gdb(record.text + ("\n" if record.kind == "output" else ""))
        elif record.kind == "log":
            if "\n" in self.doing and record.text.strip() in map(str.strip, self.doing.splitlines()):
                return  # GDB repeats the lines of a block it reads
            if self._holding:
                self._held.append(record.text)
            elif not self._quiet:
                self.screen.log(record.text)
        elif record.kind in ("notify", "result"):
            self._notified(record)

    def _notified(self, record: Record) -> None:
        if self.connection.state is State.CONNECTING:
            return
        if record.name == "running":
            self.connection.move(State.RUNNING)
        elif record.name == "stopped" and not str(record.data.get("reason", "")).startswith("exited"):
            self.screen.end_line()
            self.connection.move(State.STOPPED)
            self._refresh_soon()
        elif record.name == "thread-group-exited" and self.connection.connected:
            if typed.leaves(self.doing) or self._quiet or self.link is None:
                self.connection.move(State.IDLE)
            else:
                self.connection.move(State.DEAD, "the connection to the guest is closed")

    def _gdb_ended(self, how: str) -> None:
        self.connection.move(State.DEAD, f"GDB is gone: {how}")

    def _changed(self, before: State, state: State) -> None:
        if self.connection.connected:
            self.facts.forget_place()
            self._refresh_soon()
        elif state in (State.DEAD, State.IDLE):
            self.facts.lost()
        if state is State.DEAD:
            self.screen.end_line()
            self.screen.error(f"{self.connection.reason}; findings and history are kept, `reconnect` begins anew")

    def _drop_held(self, show: bool) -> None:
        held, self._held, self._holding = self._held, [], False
        if show:
            for text in held:
                self.screen.log(text)

    # What the extension and the guest tell when asked

    def _refresh_soon(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._spawn(self._refresh())

    async def _refresh(self) -> None:
        """Ask for the state; again and again while the guest runs."""
        await asyncio.sleep(_SETTLE)
        while self.debugger is not None and self.debugger.alive and self._tells and self.connection.connected:
            if not self._one_at_a_time.locked():
                await self.ask_state()
                if self.facts.findings and (self._new_findings or self.facts.findings != len(self.findings.current)):
                    await self.gather_findings()
            if self.connection.state is not State.RUNNING and not self._one_at_a_time.locked():
                return
            await asyncio.sleep(REFRESH)

    async def ask_state(self) -> None:
        """Take over the guest's state as of now, as far as the extension can be asked."""
        if self.debugger is None or not self.debugger.alive or self._one_at_a_time.locked() or not self._tells:
            return
        try:
            self.facts.take(await self.debugger.ask("-ctx-state"))
        except Refused as error:
            self._tells = "Undefined MI command" not in error.what
        except GdbGone:
            pass

    async def gather_findings(self) -> None:
        """Take over the findings the extension has now, as far as it can be asked."""
        if self.debugger is None or not self.debugger.alive or self._one_at_a_time.locked() or not self._tells:
            return
        self._new_findings = False
        columns = max(40, min(self.screen.columns, 200))
        with contextlib.suppress(Refused, GdbGone, TimeoutError):
            self.findings.take(await asyncio.wait_for(self.debugger.ask(f"-ctx-findings {columns}"), 5.0))

    async def _follow(self, link: Link) -> None:
        """Show what the guest prints, and say how it ended."""
        while self.link is link:
            news = await link.poll()
            for line in news.serial:
                self.screen.serial(line)
            if news.gone and self.connection.connected:
                self.connection.move(State.DEAD, f"{link.title} is gone: {news.ending}")
            elif news.ending:
                self.screen.note(f"{link.title}: {news.ending}")
            await asyncio.sleep(SERIAL_TICK)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class Silent(CtxwatchError):
    """Refused, and the user has been told already."""
