"""A GDB child driven through its machine interface without ever waiting for it: records come as they come."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from gdbext.errors import CtxwatchError, EnvironmentUnusable
from gdbext.repl import mi
from gdbext.repl.mi import Record
from gdbext.sources.gdbchild import EXTENSION, spawn

_START: Final = 20.0
"""Seconds GDB may take to start and to load the extension."""
_PATIENCE: Final = 2.0
"""Seconds GDB gets to leave when asked."""
_LONGEST_LINE: Final = 64 << 20


class Refused(CtxwatchError):
    """GDB refused a command; ``what`` is its message, ``told`` whether GDB has printed it as well."""

    told = False


class GdbGone(CtxwatchError):
    """GDB is not there any more."""


class Debugger(Protocol):
    """What the REPL needs of a GDB."""

    alive: bool

    async def ask(self, command: str) -> dict[str, Any]:
        """Run a machine-interface command; return the data of its result. Raises Refused, or GdbGone."""

    def interrupt(self) -> None:
        """Send it the signal of a Ctrl-C."""

    def kill(self) -> None:
        """End it at once, as if it had died."""

    async def close(self) -> None:
        """End it; idempotent."""


Starter = Callable[[Callable[[Record], None], Callable[[str], None]], Any]
"""Starts a Debugger, given what to call with each record and with how it ended (awaitable)."""


class Gdb:
    """A GDB process of ours. ``record`` is called with everything GDB says, ``ended`` once, with how it ended, if it
    was not by :meth:`close`."""

    def __init__(
        self, process: subprocess.Popen[bytes], record: Callable[[Record], None], ended: Callable[[str], None]
    ):
        self._process = process
        self._record, self._ended = record, ended
        self._tokens = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._logged = False
        self._ready = self._closing = False
        self.alive = True
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, record: Callable[[Record], None], ended: Callable[[str], None], arguments: Sequence[str] = ("-nx",)
    ) -> Gdb:
        """Start GDB and load the extension.

        Raises EnvironmentUnusable if there is no GDB, none with Python, or none that can load the extension.
        """
        found = shutil.which("gdb")
        if found is None:
            raise EnvironmentUnusable("there is no gdb", "it is not in PATH", "install the package gdb")
        _name_environment()
        words = [found, *arguments, "-q", "--interpreter=mi3", "-iex", "set debuginfod enabled off"]
        gdb = cls(spawn(words), record, ended)
        try:
            await asyncio.wait_for(gdb._begin(), _START)
        except BaseException as error:
            await gdb.close()
            if isinstance(error, TimeoutError):
                raise EnvironmentUnusable("GDB does not start", f"it says nothing for {_START:g} s") from error
            raise
        return gdb

    async def _begin(self) -> None:
        reader = asyncio.StreamReader(limit=_LONGEST_LINE)
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, self._process.stdout)
        self._reader = asyncio.create_task(self._read(reader))
        said: list[str] = []
        why = ""
        record, self._record = self._record, lambda record: said.append(record.text)
        try:
            await self.ask("-gdb-set mi-async on")
            await self.ask(mi.console("python None"))
            said.clear()
            await self.ask(mi.console(f"source {EXTENSION}"))
            why = " ".join("".join(said).split()).removeprefix("ctxwatch: ")
            await self.ask(mi.console("help ctx watch"))
        except GdbGone as error:
            raise EnvironmentUnusable("GDB does not start", error.why) from error
        except Refused as error:
            if "python" in error.what.lower() and "ctx" not in error.what:
                raise EnvironmentUnusable("this GDB has no Python", error.what, "use a GDB built with it") from error
            raise EnvironmentUnusable("GDB cannot load the extension", why or error.what) from error
        finally:
            self._record = record
        self._ready = True

    async def ask(self, command: str) -> dict[str, Any]:
        """See :class:`Debugger`."""
        if not self.alive:
            raise GdbGone("GDB is not running", todo="`reconnect` starts it again")
        token = next(self._tokens)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[token] = answer
        assert self._process.stdin is not None
        try:
            # The pipe holds 64 KiB and GDB reads a command at a time: a write that would block is a GDB that hangs.
            self._process.stdin.write(f"{token}{command}\n".encode("utf-8", "surrogateescape"))
            return await answer
        except OSError as error:
            raise GdbGone("GDB is gone", await asyncio.to_thread(self._how)) from error
        finally:
            self._waiting.pop(token, None)

    def interrupt(self) -> None:
        """See :class:`Debugger`."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """See :class:`Debugger`."""
        self._signal(signal.SIGKILL)

    def _signal(self, signum: signal.Signals) -> None:
        """Signal GDB and what it has started (it leads a session of its own), as a terminal would."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signum)

    async def close(self) -> None:
        """See :class:`Debugger`."""
        if self._closing:
            return
        self._closing = True
        if self.alive:
            with contextlib.suppress(TimeoutError, CtxwatchError):
                if self._waiting:
                    self.interrupt()  # out of a command that waits for the guest
                await asyncio.wait_for(self.ask("-gdb-exit"), _PATIENCE)
        if self._reader is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._reader), _PATIENCE / 4)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._reader is not None:
            self._reader.cancel()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(mi.parse(line.decode("utf-8", "replace").rstrip("\r\n")))
        except (OSError, ValueError):
            pass  # a line that never ends, or the pipe broke: the same as its end
        self.alive = False
        how = await asyncio.to_thread(self._how)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(GdbGone("GDB is gone", how))
        if self._ready and not self._closing:
            self._ended(how)

    def _how(self) -> str:
        try:
            status = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return "its pipe is closed"
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"

    def _take(self, record: Record) -> None:
        if record.kind != "result":
            self._logged = self._logged or record.kind == "log"
            self._record(record)
            return
        told, self._logged = self._logged, False
        if record.name == "running":
            self._record(record)
        answer = self._waiting.get(record.token) if record.token is not None else None
        if answer is None or answer.done():
            return
        if record.name == "error":
            refusal = Refused(" ".join(str(record.data.get("msg", "GDB refused")).split()))
            refusal.told = told
            answer.set_exception(refusal)
        else:
            answer.set_result(record.data)


def _name_environment() -> None:
    """Tell the extension which packages we run with; it would otherwise know those of a checkout alone."""
    if sys.prefix != sys.base_prefix:
        os.environ.setdefault("CTXWATCH_VENV", sys.prefix)
