"""A GDB that goes on between commands: typed at a terminal, or driven through the machine interface."""

from __future__ import annotations

import builtins
import os
import pty
import select
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from pygdbmi.gdbcontroller import GdbController

from tests.gdb.conftest import EXTENSION

PROMPT = "(gdb) "
_OPTIONS = ("-nx", "-q", "-iex", "set debuginfod enabled off", "-iex", "set width 0", "-iex", "set height 0")


class Typed:
    """GDB at a terminal of its own. ``with`` ends it."""

    def __init__(self, *commands: str) -> None:
        ours, theirs = pty.openpty()
        self._terminal = ours
        environment = {**os.environ, "TERM": "dumb", "INPUTRC": "/dev/null"}
        self.process = subprocess.Popen(
            ["gdb", *_OPTIONS, "-ex", f"source {EXTENSION}"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self.read()
        for command in ("set confirm off", "set style enabled off", *commands):
            self.type(command)

    def type(self, line: str, timeout: float = 30.0) -> str:
        """Type `line` and Enter; what GDB printed until it prompts again."""
        os.write(self._terminal, line.encode() + b"\n")
        text = self.read(timeout)
        return text.partition("\n")[2]

    def read(self, timeout: float = 30.0) -> str:
        """What comes up to the next prompt."""
        text, deadline = "", time.monotonic() + timeout
        while not text.endswith(PROMPT):
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no prompt within {timeout} s after:\n{text}")
            text += os.read(self._terminal, 65536).decode("utf-8", "replace").replace("\r", "")
        return text.removesuffix(PROMPT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: builtins.type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


class Mi:
    """GDB through the machine interface. ``with`` ends it."""

    def __init__(self, *commands: str) -> None:
        self._gdb = GdbController(["gdb", *_OPTIONS, "--interpreter=mi3", "-ex", f"source {EXTENSION}"], 0.02)
        for command in ("set confirm on", *commands):
            self.ask(f'-interpreter-exec console "{command}"')

    def ask(self, command: str, timeout: float = 30.0) -> str:
        """Everything GDB says until `command` is done and, if it ran the guest, until that stands still: a result as
        ``^done`` or ``^error MESSAGE``, streams as text, notifications as ``*stopped``."""
        said: list[str] = []
        running = done = False
        deadline = time.monotonic() + timeout
        self._gdb.write(command, read_response=False)
        while not done or running:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{command!r} was not done within {timeout} s:\n" + "\n".join(said))
            for part in self._gdb.get_gdb_response(timeout_sec=1, raise_error_on_timeout=False):
                kind, message, payload = part["type"], part["message"], part["payload"]
                if kind == "result":
                    done = True
                    running = running or message == "running"
                    said.append(f"^{message} {payload.get('msg', payload) if payload else ''}")
                elif kind == "notify":
                    running = {"running": True, "stopped": False}.get(message, running)
                    said.append(f"*{message} {payload}")
                elif kind in ("console", "log", "target", "output"):
                    said.append(str(payload))
        return "\n".join(said)

    def say(self, command: str, timeout: float = 30.0) -> str:
        """The same for a command of the console."""
        return self.ask(f'-interpreter-exec console "{command}"', timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gdb.exit()


def script(directory: Path, command: str) -> str:
    """The command that runs `command` from a file."""
    path = directory / "cell.gdb"
    path.write_text(command + "\n", "utf-8")
    return f"source {path}"
