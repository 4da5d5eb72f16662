"""A GDB that goes on between commands: typed at a terminal, or driven through the machine interface."""

from __future__ import annotations

import builtins
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pygdbmi.gdbcontroller import GdbController

from gdbext.sources.leash import leash
from tests.gdb.conftest import EXTENSION

PROMPT = "(gdb) "
_STILL = 50
"""Steps in a row that may stand still."""
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
            preexec_fn=leash(),
        )
        os.close(theirs)
        self.read()
        for command in ("set confirm off", "set style enabled off", *commands):
            self.type(command)

    def type(self, line: str, timeout: float = 100.0) -> str:
        """Type `line` and Enter; what GDB printed until it prompts again."""
        os.write(self._terminal, line.encode() + b"\n")
        text = self.read(timeout)
        return text.partition("\n")[2]

    def read(self, timeout: float = 100.0) -> str:
        """What comes up to the next prompt."""
        return self._read(lambda text: text.endswith(PROMPT), "prompt", timeout).removesuffix(PROMPT)

    def _read(self, enough: Callable[[str], bool], what: str, timeout: float) -> str:
        text, deadline = "", time.monotonic() + timeout
        while not enough(text):
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no {what} within {timeout} s after:\n{text}")
            text += os.read(self._terminal, 65536).decode("utf-8", "replace").replace("\r", "")
        return text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: builtins.type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


class Mi:
    """GDB through the machine interface. ``with`` ends it.

    Each command carries a token, by which its result is known. What else GDB says belongs to no command: a command that
    ran the guest has its result before the guest runs, and what an event prints comes at any time.
    """

    def __init__(self, *commands: str) -> None:
        self._gdb = GdbController(["gdb", *_OPTIONS, "--interpreter=mi3", "-ex", f"source {EXTENSION}"], 0.02)
        self._token = 0
        self._results: dict[int, str] = {}
        self._running = False
        self._said: list[str] = []
        for command in ("set confirm on", *commands):
            self.ask(f'-interpreter-exec console "{command}"')

    def ask(self, command: str, timeout: float = 100.0) -> str:
        """Everything GDB says until `command` is done and, if it ran the guest, until that stands still: a result as
        ``^done`` or ``^error MESSAGE``, streams as text, notifications as ``*stopped``."""
        self._ask(command, timeout)
        said, self._said = self._said, []
        return "\n".join(said)

    def answer(self, command: str, timeout: float = 100.0) -> str:
        """The result alone."""
        result = self._ask(command, timeout)
        self._said = []
        return result

    def ask_until(self, pattern: str, command: str, timeout: float = 100.0) -> str:
        """As :meth:`ask`, and on until `pattern` is found in something that GDB says."""
        self._ask(command, timeout)
        deadline = time.monotonic() + timeout
        self._until(lambda: any(re.search(pattern, line) for line in self._said), pattern, deadline)
        said, self._said = self._said, []
        return "\n".join(said)

    def _ask(self, command: str, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        result = self._result(command, deadline)
        if result.startswith("^running"):
            self._until(lambda: not self._running, command, deadline)
            self._result("-list-features", deadline)  # a command of the console may have gone on behind the stop
        return result

    def _result(self, command: str, deadline: float) -> str:
        self._token += 1
        token = self._token
        self._gdb.write(f"{token}{command}", read_response=False)
        self._until(lambda: token in self._results, command, deadline)
        return self._results.pop(token)

    def _until(self, so: Callable[[], bool], what: str, deadline: float) -> None:
        """Take in what GDB says until it is `so`."""
        while not so():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited too long for {what!r}; GDB said:\n" + "\n".join(self._said))
            for part in self._gdb.get_gdb_response(timeout_sec=1, raise_error_on_timeout=False):
                self._take(part)

    def _take(self, part: dict[str, Any]) -> None:
        kind, message, payload = part["type"], part["message"], part["payload"]
        if kind == "result":
            result = f"^{message} {payload.get('msg', payload) if payload else ''}"
            self._results[part["token"]] = result
            self._running = self._running or message == "running"
            if "features" not in (payload or ()):
                self._said.append(result)
        elif kind == "notify":
            self._running = {"running": True, "stopped": False}.get(message, self._running)
            self._said.append(f"*{message} {payload}")
        elif kind in ("console", "log", "target", "output"):
            self._said.append(str(payload))

    def say(self, command: str, timeout: float = 100.0) -> str:
        """The same for a command of the console."""
        return self.ask(f'-interpreter-exec console "{command}"', timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gdb.exit()


def step_until_moved(gdb: Typed, command: str = "stepi") -> str:
    """Type `command`, a step, until RIP has moved; what GDB said in the end. QEMU reports a step of a vCPU that was
    kicked before it ran the one instruction as done."""
    before = gdb.type("output/x $rip")
    for _ in range(_STILL):
        said = gdb.type(command)
        if gdb.type("output/x $rip") != before:
            return said
    raise AssertionError(f"{_STILL} times {command} did not move: {said}")


def script(directory: Path, command: str) -> str:
    """The command that runs `command` from a file."""
    path = directory / "cell.gdb"
    path.write_text(command + "\n", "utf-8")
    return f"source {path}"
