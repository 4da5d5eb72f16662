"""A GDB of our own with the extension loaded, driven through its machine interface (pygdbmi)."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from gdbext.errors import CtxwatchError, EnvironmentUnusable
from gdbext.sources.leash import leash

EXTENSION: Final = Path(__file__).resolve().parents[1] / "ctxwatch.py"
_START: Final = 20.0
"""Seconds GDB may take to start and to load the extension."""
_POLL: Final = 0.02
_ASK_AGAIN: Final = 0.1
_LEAVING: Final = 5.0
"""Seconds its process may take to be gone after its pipes."""


class GdbError(CtxwatchError):
    """A command that GDB refused; ``what`` is GDB's message."""


class GdbDied(CtxwatchError):
    """GDB is gone."""


class GdbChild:
    """A GDB process without the user's init files. It ends with us, whatever happens.

    Raises EnvironmentUnusable if there is no GDB, none with Python, or none that can load the extension.
    """

    def __init__(self, gdb: str = "gdb") -> None:
        from pygdbmi.IoManager import IoManager

        found = shutil.which(gdb)
        if found is None:
            raise EnvironmentUnusable(f"there is no {gdb}", "it is not in PATH", "install the package gdb")
        self._process = spawn([found, "-nx", "-q", "--interpreter=mi3", "-iex", "set debuginfod enabled off"])
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._io: Any = IoManager(
            self._process.stdin, self._process.stdout, None, time_to_check_for_additional_output_sec=0
        )
        self._token = 0
        self.console: list[str] = []
        """Lines that GDB and the extension wrote for a person since last cleared."""
        self.stops: list[dict[str, Any]] = []
        """``*stopped`` records since last cleared."""
        self.running = False
        """The guest runs, as far as GDB has said."""
        self.connected = False
        """GDB has a guest, as far as it has said."""
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def command(self, text: str, timeout: float = 10.0) -> dict[str, Any]:
        """Run a machine-interface command; return its result's payload. Raises GdbError, or GdbDied."""
        self._token += 1
        try:
            self._io.write(f"{self._token}{text}", read_response=False)
        except (OSError, ValueError) as error:
            raise self._died() from error
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for record in self._records(min(0.2, timeout)):
                if record.get("type") == "result" and record.get("token") == self._token:
                    payload = record.get("payload") or {}
                    if record["message"] == "error":
                        raise GdbError(str(payload.get("msg", "GDB refused")))
                    return payload if isinstance(payload, dict) else {}
        raise GdbError(f"GDB did not answer within {timeout:g} s")

    def cli(self, text: str, timeout: float = 10.0) -> None:
        """Run a console command, as if it was typed."""
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        self.command(f'-interpreter-exec console "{quoted}"', timeout)

    def poll(self) -> bool:
        """Take what GDB has written; False once GDB is gone."""
        for _ in self._records(0):
            pass
        return self.alive

    def interrupt(self, timeout: float = 10.0) -> bool:
        """Stop the guest if it runs; True once GDB has reported a stop. Raises GdbError or GdbDied.

        QEMU ignores a request that crosses a stop on its way, which under watch is often: it is asked again.
        """
        self.poll()
        if not self.running:
            return True
        self.stops.clear()
        deadline = time.monotonic() + timeout
        while not self.stops and self.connected and time.monotonic() < deadline:
            self.command("-exec-interrupt", timeout)
            again = time.monotonic() + _ASK_AGAIN
            while not self.stops and self.connected and time.monotonic() < again:
                if not self.poll():
                    return False
                time.sleep(_POLL / 4)
        return bool(self.stops)

    def ask_to_stop(self) -> None:
        """Like :meth:`interrupt`, without waiting for anything; raises GdbDied."""
        try:
            self._io.write("-exec-interrupt", read_response=False)
        except (OSError, ValueError) as error:
            raise self._died() from error

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """The process runs."""
        return self._process.poll() is None

    def close(self, patience: float = 3.0) -> None:
        """End the process: asked first, then killed. Idempotent."""
        if self.alive and patience:
            with contextlib.suppress(OSError, ValueError, CtxwatchError):
                self._io.write("-gdb-exit", read_response=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        if self.alive:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _load(self) -> None:
        """Bring GDB to where commands of the extension work."""
        try:
            self.command("-gdb-set confirm off", _START)
            self.command("-gdb-set mi-async on")
            self.cli("python None", _START)
        except GdbDied as error:
            raise EnvironmentUnusable("GDB does not start", error.why) from error
        except GdbError as error:
            raise EnvironmentUnusable(
                "this GDB has no Python", error.what.rstrip("."), "use a GDB built with it"
            ) from error
        self.console.clear()
        self.cli(f"source {EXTENSION}", _START)
        said = " ".join(self.console).strip().removeprefix("ctxwatch: ")  # what GDB says of the next is no cause
        try:
            self.cli("help ctx watch")
        except GdbError as error:
            raise EnvironmentUnusable("GDB cannot load the extension", said or error.what) from error
        self.console.clear()

    def _records(self, timeout: float) -> Iterator[dict[str, Any]]:
        """What GDB writes within `timeout` seconds, up to the first records; raises GdbDied when it is gone."""
        deadline = time.monotonic() + timeout
        while True:
            # pygdbmi spins on a pipe at its end: look first whether there is a process.
            gone = not self.alive
            records = self._io.get_gdb_response(timeout_sec=0, raise_error_on_timeout=False)
            for record in records:  # all of them, before somebody has the one he waited for and leaves
                self._note(record)
            yield from records
            if records:
                return
            if gone:
                raise self._died()
            if time.monotonic() >= deadline:
                return
            time.sleep(_POLL / 4)

    def _note(self, record: dict[str, Any]) -> None:
        kind, payload = record.get("type"), record.get("payload")
        if kind in ("console", "log", "target", "output") and isinstance(payload, str):
            self.console.append(payload.rstrip("\n"))
            del self.console[:-1000]
        elif kind == "notify" and record.get("message") == "stopped":
            self.running = False
            self.stops.append(payload if isinstance(payload, dict) else {})
        elif kind == "notify" and record.get("message") in ("thread-group-started", "thread-group-exited"):
            self.connected = record["message"] == "thread-group-started"
        elif record.get("message") == "running":  # the answer to a command, or a notification
            self.running = True

    def _died(self) -> GdbDied:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LEAVING)  # its pipes close before
        code = self._process.returncode
        if code is not None and code < 0:
            how = f"killed by {signal.Signals(-code).name}"
        else:
            how = f"it ended with status {code}" if code is not None else "its pipe is closed"
        return GdbDied("GDB is gone", how)


def spawn(argv: list[str]) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own; the kernel kills it when the calling thread ends."""
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=leash(),
            bufsize=0,
        )
    except OSError as error:
        raise EnvironmentUnusable(f"{argv[0]} does not start", error.strerror or str(error)) from error
