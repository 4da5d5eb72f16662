"""Events through a debugger: a GDB child with the extension, connected to QEMU's gdbstub, streams rows to us."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from gdbext.errors import CtxwatchError, EnvironmentUnusable, NotCapable
from gdbext.events.row import ROW, Batch, Flag, empty
from gdbext.sources.base import NO_WATCHPOINTS, Capability
from gdbext.sources.gdbchild import GdbChild, GdbDied, GdbError
from gdbext.sources.rowstream import (
    BYTES,
    CONTINUE,
    FAILED,
    HALT,
    MAX_READ,
    ROWS,
    UNMAPPED,
    parse_failure,
    request,
    watch_request,
)

ARCHITECTURES: Final = {"x86_64": "i386:x86-64", "i386": "i386"}
"""GDB's names. A 64-bit QEMU describes a 64-bit machine whatever mode its CPU is in."""
_BATCH: Final = 256
_CONNECT: Final = 25.0
"""Seconds for GDB to find out whether a GDB server answers."""
_DYING: Final = 5.0
"""Seconds GDB may take to be gone, or to say that it is not."""
_POLL: Final = 0.02
_LEAVE: Final = 10.0
"""Seconds GDB may take for each step of leaving the guest: it is killed at last, and a guest then stays stopped."""
_LOOK_EVERY: Final = 0.3
"""Seconds between two looks whether the guest has loaded an interrupt table, until it has been interrupted once."""
_SILENCE: Final = 1.0
"""Seconds without a row after which it may have loaded another that nobody saw it load; doubled each time..."""
_LONGEST: Final = 8.0
"""...up to this."""
_PASSING: Final = 3.0
"""Seconds to wait for GDB to stop the guest for a look, where events are asked for."""
_ASK_AGAIN: Final = 0.1
_MEMORY_WAIT: Final = 2.0
"""Seconds to wait for a stop at which memory can be read."""
_IMPATIENCE: Final = 0.2
"""Seconds after which the guest is stopped for that."""
_MEMORY_POLL: Final = 0.05
_CREDENTIALS: Final = struct.Struct("3i")
"""``struct ucred``: process, user, group."""


class GdbstubSource:
    """Rows from breakpoints that GDB sets in the guest behind `endpoint`: ``HOST:PORT``, or a UNIX socket's path.

    kernel: an ELF file that tells where the guest will load its interrupt table, for a guest that has not yet; with
    symbols or without.  arch: the QEMU binary's, ``x86_64`` or ``i386``.  halt: rows on which a rule may speak carry
    Flag.WAITING and the guest stands still until :meth:`release`.

    The guest must not have another debugger; it is let run. Raises EnvironmentUnusable where there is no GDB that can
    do it, and CtxwatchError where nobody listens at `endpoint`, or nobody who speaks GDB's protocol.
    """

    name = "gdbstub"

    def __init__(
        self,
        endpoint: str,
        *,
        kernel: Path | None = None,
        arch: str = "x86_64",
        halt: bool = False,
        gdb: str = "gdb",
    ) -> None:
        self.capabilities = Capability.MEMORY | Capability.SWITCHES | Capability.FEW_STORES
        self.capabilities |= Capability.HALT if halt else Capability.NONE
        self._ready = threading.Condition()
        self._rows: list[bytes] = []
        self._answers: dict[int, bytes | None] = {}
        """By number, those that somebody may still wait for."""
        self._asked = self._answered = 0
        self._ended = False
        self._told = False
        self._failure: CtxwatchError | None = None
        self._waiting = False
        self._unanswered = False
        """The guest stands in a row that was or will be read, and goes on by :meth:`release`."""
        self._halted = False
        self._closed = False
        self._peer: socket.socket | None = None
        """The collector."""
        self._silence = _LOOK_EVERY
        self._next_look = 0.0
        self._passing = 0.0
        """Since when the guest is being stopped for a look; 0.0 while it is not."""
        self._child: GdbChild | None = None
        self._listener = _listen()
        name = self._listener.getsockname()[1:].decode()
        self._command = f"ctx watch --stream @{name}" + (" --halt" if halt else "")
        try:
            self._open(endpoint, kernel, arch, gdb)
        except BaseException:
            self.close()
            raise

    def read(self, timeout: float) -> Batch | None:
        """The rows that came within `timeout` seconds; returns early for a full batch and for one that waits.

        None when the guest or GDB is gone. Raises GdbDied if GDB ended of itself, and what the watch failed of, once.
        """
        deadline = time.monotonic() + timeout
        with self._ready:
            while not self._ended and not self._waiting:
                if not self._alive():
                    self._ended = True
                    break
                self._look()
                left = deadline - time.monotonic()
                # Who stops the guest later shall not be taken for us: a look is brought to its end first.
                looks = not self._unanswered and time.monotonic() < self._passing + _PASSING
                if not looks and (left <= 0 or len(self._rows) >= _BATCH):
                    break
                self._ready.wait(_POLL / 4 if looks else min(left, _LOOK_EVERY))
            rows, self._rows, self._waiting = self._rows, [], False
            ended = self._ended
        if rows:
            self._silence = _SILENCE
            self._next_look = time.monotonic() + _SILENCE
            return np.frombuffer(b"".join(rows), ROW).copy()
        if not ended:
            return empty()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        self._look_for_death()
        return None

    def release(self, cpu: int, halt: bool) -> None:
        """Answer the row with Flag.WAITING of vCPU `cpu`: go on, or stop for good before the exit runs."""
        self._halted = self._halted or halt
        self._unanswered = False
        self._send(HALT if halt else CONTINUE)

    def read_memory(self, address: int, length: int, cpu: int = 0) -> bytes:
        """Guest virtual memory as the vCPU of the current or the next stop sees it.

        Raises OSError where it is unmapped, or where the guest makes no stop within two seconds or stands still.
        """
        if not 0 <= address < 1 << 64 or not 0 < length <= MAX_READ:
            raise OSError(f"{length} bytes at {address:#x} cannot be read")
        data = self._ask(request(address, length))
        if data is None:
            raise OSError(f"guest memory at {address:#x} is unmapped")
        return data

    def set_watch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Put hardware watchpoints there, which stop the guest at each store, from its next stop on.

        Raises NotCapable where QEMU takes none (so under KVM). It must not be asked for where the CPU pushes frames:
        QEMU dies of it.
        """
        try:
            taken = self._ask(watch_request(ranges)) is not None
        except OSError:
            return  # it stands still, or makes no stop for long: what was asked for is done at the next one
        if not taken:
            raise NotCapable(NO_WATCHPOINTS, "QEMU takes no watchpoints of that size", "use --via probe")

    def _ask(self, question: bytes) -> bytes | None:
        """What the collector answers at the next stop. A guest that makes none for a moment is stopped for it.

        Raises OSError where no stop comes within two seconds.
        """
        with self._ready:
            self._answers.clear()
            self._asked += 1
            mine = self._asked
            self._send(question)
            began = time.monotonic()
            while not self._ready.wait_for(lambda: mine in self._answers or self._ended, _MEMORY_POLL):
                waited = time.monotonic() - began
                if waited > _MEMORY_WAIT or not self._runs():
                    break
                if waited > _IMPATIENCE:
                    if not self._passing:
                        self._next_look = 0.0
                    self._look()
            if mine not in self._answers:
                raise OSError("the guest made no stop at which it could be asked")
            return self._answers.pop(mine)

    @property
    def lost(self) -> int:
        """None is ever lost: the guest stands still while an event is taken."""
        return 0

    def close(self) -> None:
        """Remove the breakpoints, leave the guest, end GDB."""
        if self._closed:
            return
        self._closed = True
        if self._peer is not None:
            # A guest that stands in a row goes on; the collector sees that nobody reads any more.
            with contextlib.suppress(OSError):
                self._peer.shutdown(socket.SHUT_RDWR)
        if self._child is not None:
            self._leave(self._child)
            self._child.close()
        if self._peer is not None:
            self._peer.close()
        self._listener.close()

    def _open(self, endpoint: str, kernel: Path | None, arch: str, gdb: str) -> None:
        if arch not in ARCHITECTURES:
            raise CtxwatchError(f"unknown architecture {arch!r}", todo=f"use one of {', '.join(ARCHITECTURES)}")
        child = self._child = GdbChild(gdb)
        if kernel is not None:
            with contextlib.suppress(GdbError):  # symbols GDB cannot read; the extension says what it needs
                child.command(f"-file-exec-and-symbols {_quoted(str(kernel))}", 60)
        child.cli(f"set architecture {ARCHITECTURES[arch]}")
        _connect(child, endpoint)
        try:
            child.cli(self._command, 60)
        except GdbError as error:
            if child.connected:
                raise CtxwatchError("the guest cannot be watched through gdbstub", error.what) from error
            self._ended = True  # QEMU died meanwhile
            return
        self._peer = self._accept()
        threading.Thread(target=self._receive, name="gdbstub rows", daemon=True).start()
        self._next_look = time.monotonic() + _LOOK_EVERY
        self._go_on()

    def _accept(self) -> socket.socket:
        """The collector's connection. Nobody else gets one, though anybody may knock at a socket without a file."""
        assert self._child is not None
        while True:
            peer = self._listener.accept()[0]
            pid, _, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if pid == self._child.pid:
                return peer
            peer.close()

    def _look(self) -> None:
        """Where no rows come, have GDB stop the guest for a moment: the collector then looks at its tables.

        GDB is asked and not waited for. It may be in a stop that ends with an answer from here, and stops the guest
        after that. QEMU ignores a request that crosses a stop on its way: it is asked again.
        """
        assert self._child is not None
        now = time.monotonic()
        if now < self._next_look or self._unanswered or self._halted or not self._child.running:
            return
        self._passing = self._passing or now
        self._next_look = now + _ASK_AGAIN
        with contextlib.suppress(GdbDied):  # told by the next poll
            self._child.ask_to_stop()

    def _go_on(self) -> None:
        assert self._child is not None
        self._child.stops.clear()
        self._child.command("-exec-continue")

    def _alive(self) -> bool:
        """Take what GDB says, and let the guest go on where it was stopped for a look; False once GDB is gone or the
        guest has stopped for good."""
        assert self._child is not None
        try:
            self._child.poll()
            if any(_final(stop) for stop in self._child.stops):
                return False
            if self._passing and not self._child.running and not self._halted:
                self._passing = 0.0
                self._next_look = time.monotonic() + self._silence
                if self._silence >= _SILENCE:
                    self._silence = min(2 * self._silence, _LONGEST)
                self._go_on()
        except (GdbDied, GdbError):
            return False
        return True

    def _runs(self) -> bool:
        return self._alive() and self._child is not None and self._child.running

    def _look_for_death(self) -> None:
        """The stream has ended: raise GdbDied if that is because GDB did, once.

        Its socket closes before its process is gone, on a busy machine long before: so it is asked. Who answers lives.
        """
        if self._child is None or self._closed or self._told:
            return
        self._told = True
        with contextlib.suppress(GdbError):
            self._child.command("-gdb-show confirm", _DYING)

    def _receive(self) -> None:
        """Sort what the collector sends, until it closes."""
        assert self._peer is not None
        stream = self._peer.makefile("rb")
        try:
            while kind := stream.read(1):
                if kind == ROWS:
                    raw = stream.read(ROW.itemsize)
                    if len(raw) < ROW.itemsize:
                        break
                    row = np.frombuffer(raw, ROW)
                    with self._ready:
                        self._rows.append(raw)
                        if row["flags"][0] & Flag.WAITING:
                            self._waiting = self._unanswered = True
                        if self._waiting or len(self._rows) >= _BATCH:
                            self._ready.notify_all()
                elif kind == BYTES:
                    length = int.from_bytes(stream.read(4), "little")
                    data = None if length == UNMAPPED else stream.read(length)
                    with self._ready:
                        self._answered += 1
                        self._answers[self._answered] = data
                        self._ready.notify_all()
                elif kind == FAILED:
                    self._failure = parse_failure(stream.read(int.from_bytes(stream.read(4), "little")))
                    break
        except OSError:
            pass  # closed on either side
        with self._ready:
            self._ended = True
            self._ready.notify_all()

    def _send(self, data: bytes) -> None:
        if self._peer is not None:
            with contextlib.suppress(OSError):  # gone: read() tells
                self._peer.sendall(data)

    @staticmethod
    def _leave(child: GdbChild) -> None:
        """Stop the guest, take the breakpoints out, let it run without us; as far as GDB still can."""
        with contextlib.suppress(CtxwatchError):
            child.interrupt(_LEAVE)
            child.cli("ctx watch off", _LEAVE)
            child.cli("detach", _LEAVE)


def _listen() -> socket.socket:
    """A socket for the collector, by a name that Linux chooses (unix(7), autobind): a file would outlive a killed
    process."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("")
    listener.listen(1)
    listener.settimeout(10)
    return listener


def _connect(child: GdbChild, endpoint: str) -> None:
    # A server of another kind is asked several times over before GDB gives up.
    child.cli("set tcp auto-retry off")
    child.cli("set remotetimeout 1")
    child.console.clear()
    try:
        child.cli(f"target remote {endpoint}", _CONNECT)
        child.cli("set remotetimeout 10")
    except GdbError as error:
        said = " ".join([error.what, *child.console])
        if re.search(r"refused|could not connect|No such file|unable to open|timed out: ", said, re.IGNORECASE):
            raise CtxwatchError(
                f"nobody listens at {endpoint}", error.what.rstrip("."), "start QEMU with -gdb"
            ) from error
        raise CtxwatchError(
            f"what listens at {endpoint} does not speak GDB's protocol", error.what.rstrip("."), "is it QEMU's -gdb?"
        ) from error
    except GdbDied as error:
        raise EnvironmentUnusable("GDB died while it connected", error.why) from error


def _final(stop: dict[str, object]) -> bool:
    """True for a stop after which there is nothing more to watch: the guest ended, or QEMU stopped it for good."""
    reason = str(stop.get("reason", ""))
    return reason.startswith("exited") or stop.get("signal-name") in ("SIGQUIT", "SIGABRT")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
