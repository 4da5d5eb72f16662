"""Ctrl-C while the guest runs under watch.

GDB hands a Ctrl-C to Python whenever Python runs, and with a thousand stops a second Python runs half of the time: the
exception would end a stop in the middle, or surface in some other extension. So while the guest runs under watch the
signal is blocked and a thread waits for it, which asks GDB to stop the guest in the ordinary way. QEMU ignores such a
request that crosses a stop on its way; the next stop then serves.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from typing import Final

import gdb

_NEXT_STOP: Final = 0.25
"""Seconds within which a guest under watch is expected to make a stop. (An event that GDB has not come to when it exits
makes it crash: posted later than the stop it asks for, none is left behind by a script.)"""


class Interrupts:
    """``wanted``: somebody pressed Ctrl-C since the guest was let run."""

    def __init__(self) -> None:
        self.wanted = False
        self._held = False
        self._thread: threading.Thread | None = None

    def hold(self) -> None:
        """The guest runs: take each Ctrl-C from now on."""
        if self._held:
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self._held = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._wait, name="ctxwatch Ctrl-C", daemon=True)
            self._thread.start()

    def release(self) -> None:
        """The guest stands still, or is gone: a Ctrl-C is GDB's again."""
        if self._held:
            self._held = False
            self.wanted = False
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def _wait(self) -> None:
        # Threads inherit the mask: the signal is blocked here for good, and comes only while it is blocked everywhere.
        while True:
            signal.sigwait({signal.SIGINT})
            self.wanted = True
            # A guest that makes stops is stopped by the next one.
            time.sleep(_NEXT_STOP)
            if self.wanted:
                gdb.post_event(self._ask)

    def _ask(self) -> None:
        if self.wanted:
            with contextlib.suppress(gdb.error):  # it has just stopped
                gdb.execute("interrupt")
