"""A synchronous QMP connection over the ``qemu.qmp`` package.

The package speaks asyncio; everything above this module is synchronous. One daemon thread runs one event loop for
one connection, so that a call may be made from any thread and an event is taken the moment QEMU sends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import (
    ConnectError,
    ExecuteError,
    QMPClient,
    QMPError,
    Runstate,
)
from qemu.qmp.message import Message

from gdbext.errors import CtxwatchError, EnvironmentUnusable

_T = TypeVar("_T")

DEFAULT_TIMEOUT = 10.0
"""Seconds that QEMU gets to answer; it answers in microseconds unless it hangs."""

_LOOK = 0.001
"""Seconds between two calls of what is to be done while QEMU does not answer."""


class QmpError(CtxwatchError):
    """QEMU refused a command; ``why`` is its own description."""

    status = 3


class QmpClosed(QmpError):
    """The connection is gone: QEMU ended, or did not answer in time."""


class Qmp:
    """One connection. Commands and :meth:`close` may be used from several threads."""

    def __init__(self, path: Path, timeout: float = DEFAULT_TIMEOUT, alive: Callable[[], bool] = lambda: True) -> None:
        """Connect to the UNIX socket `path`, which QEMU may take up to `timeout` seconds to open.

        alive: tells whether QEMU still runs; waiting for the socket ends when it says no.
        Raises :class:`gdbext.errors.EnvironmentUnusable` when nobody answers there.
        """
        self.path = path
        self.timeout = timeout
        self.events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        """Asynchronous events in order of arrival, as QEMU sent them (``{"event": "STOP", "timestamp": …}``)."""
        self._closed = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("ctxwatch")
        self._client.logger.disabled = True  # what goes wrong is raised; the package would also print it
        self._client.events.event_filter = self._take
        self._thread = threading.Thread(target=self._loop.run_forever, name="ctxwatch-qmp", daemon=True)
        self._thread.start()
        try:
            self._connect(time.monotonic() + timeout, alive)
        except BaseException:
            self.close()
            raise

    def _connect(self, deadline: float, alive: Callable[[], bool]) -> None:
        while True:
            try:
                self._run(self._client.connect(str(self.path)), max(deadline - time.monotonic(), 0.1))
                break
            except ConnectError as error:
                # Not there yet, or not listening yet: the only failures that waiting can mend.
                if isinstance(error.exc, OSError) and time.monotonic() < deadline and alive():
                    time.sleep(0.02)
                    continue
                raise EnvironmentUnusable(
                    f"no QMP monitor at {self.path}",
                    str(error.exc),
                    "start QEMU with -qmp unix:PATH,server=on,wait=off",
                ) from error

    def _take(self, message: Message) -> bool:
        self.events.put(dict(message))
        return False  # taken: nothing is to stay in the package's own queue

    def _run(
        self, coroutine: Coroutine[Any, Any, _T], timeout: float, meanwhile: Callable[[], None] | None = None
    ) -> _T:
        if self._loop.is_closed():
            coroutine.close()
            raise QmpClosed("the QMP connection is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            try:
                return future.result(min(left, _LOOK) if meanwhile is not None else left)
            except TimeoutError:
                if left <= 0 or meanwhile is None:
                    future.cancel()
                    what = f"QEMU did not answer on {self.path} within {timeout:.0f} s"
                    raise QmpClosed(what, "it hangs or is stopped") from None
                meanwhile()

    @property
    def alive(self) -> bool:
        """False once the connection ended, on either side."""
        return not self._closed.is_set() and self._client.runstate is Runstate.RUNNING

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        timeout: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Any:
        """Run a QMP command and return its value. meanwhile: called again and again until it is there.

        Raises :class:`QmpError` when QEMU refuses it, :class:`QmpClosed` when QEMU is gone or silent for `timeout`
        seconds (default: the connection's).
        """
        try:
            patience = self.timeout if timeout is None else timeout
            return self._run(self._client.execute(command, arguments), patience, meanwhile)
        except ExecuteError as error:
            raise QmpError(f"QEMU refused {command}", str(error)) from error
        except QMPError as error:
            raise QmpClosed(f"QEMU ended before it answered {command}") from error

    def hmp(self, line: str, timeout: float | None = None) -> str:
        """Run a human-monitor line and return what it printed, with ``\\n`` line ends."""
        answer = self.execute("human-monitor-command", {"command-line": line}, timeout)
        return str(answer).replace("\r\n", "\n")

    def event(self, timeout: float) -> dict[str, Any] | None:
        """Return the next event, or None when none came within `timeout` seconds."""
        try:
            return self.events.get(timeout=timeout) if timeout > 0 else self.events.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Disconnect and end the thread; idempotent. The guest goes on."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._thread.is_alive():
            with contextlib.suppress(Exception):  # the peer may have died in any way; we are leaving anyhow
                asyncio.run_coroutine_threadsafe(self._client.disconnect(), self._loop).result(2.0)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(2.0)
        if not self._loop.is_running():
            self._loop.close()

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
