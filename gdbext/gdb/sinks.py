"""Where the collector's rows go: into an engine in this process, or over a socket to whoever asked for them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Collection
from typing import Protocol

from gdbext.errors import CtxwatchError
from gdbext.events.row import Batch, Flag, Kind
from gdbext.rules.codes import ERROR
from gdbext.rules.engine import Engine
from gdbext.rules.finding import Finding
from gdbext.rules.guest import GuestView


class Sink(Protocol):
    """Takes rows one by one, in order of ``seq``."""

    def put(self, row: Batch) -> bool:
        """Take a batch of one; True if the guest is to stop here."""

    def close(self) -> None:
        """No more rows."""


class EngineSink:
    """Judges rows as they come. ``tell`` is called with each new finding."""

    def __init__(
        self, guest: GuestView, codes: Collection[str] | None, halt: bool, tell: Callable[[Finding], None]
    ) -> None:
        self.engine = Engine(codes=codes, guest=guest)
        self._halt = halt
        self._tell = tell

    def put(self, row: Batch) -> bool:
        found = self.engine.feed(row)
        for finding in found:
            self._tell(finding)
        return self._halt and any(finding.severity == ERROR for finding in found)

    def close(self) -> None:
        for finding in self.engine.finish():
            self._tell(finding)


CONTINUE, HALT, MEMORY = b"c", b"h", b"m"
REQUEST_SIZE = 17
"""A request on the stream: one command byte, then address and length as 8-byte little-endian numbers."""
ROWS, BYTES = b"r", b"b"
"""A message to the reader begins with its kind; ``b`` is followed by a 4-byte length (0xffffffff: unmapped)."""
UNMAPPED = 0xFFFF_FFFF
_WAITS = frozenset({Kind.EXIT, Kind.SWITCH_IN, Kind.SWAPGS, Kind.GS_ACCESS, Kind.ENTRY})
_MAX_READ = 1 << 20


class StreamSink:
    """Sends rows over a UNIX socket, as they lie in memory, and serves requests for guest memory meanwhile.

    With `wait`, rows that a rule may judge carry Flag.WAITING and the guest stands until an answer comes: ``c`` goes
    on, ``h`` stops it. Requests are served at stops only: GDB reads no memory of a running target.
    """

    def __init__(self, path: str, read: Callable[[int, int], bytes], wait: bool) -> None:
        self._read = read
        self._wait = wait
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = b""
        try:
            self._socket.connect(path)
        except OSError as error:
            raise CtxwatchError(f"nobody listens at {path}", error.strerror or str(error)) from error

    def put(self, row: Batch) -> bool:
        waiting = self._wait and int(row["kind"][0]) in _WAITS
        if waiting:
            row["flags"] |= Flag.WAITING
        try:
            self._socket.sendall(ROWS + row.tobytes())
            return self._serve(waiting)
        except OSError as error:
            raise CtxwatchError("the reader of the stream is gone", str(error)) from error

    def idle(self) -> None:
        """The target stopped for a reason of its own: serve what is asked."""
        with contextlib.suppress(OSError):
            self._serve(False)

    def close(self) -> None:
        self._socket.close()

    def _serve(self, until_answered: bool) -> bool:
        """Handle the requests that are there; with `until_answered`, wait for ``c`` or ``h``. True for ``h``."""
        while True:
            while len(self._buffer) >= REQUEST_SIZE or self._buffer[:1] in (CONTINUE, HALT):
                command = self._buffer[:1]
                if command == MEMORY:
                    self._send_memory(self._buffer[1:REQUEST_SIZE])
                    self._buffer = self._buffer[REQUEST_SIZE:]
                    continue
                self._buffer = self._buffer[1:]
                if until_answered:
                    return command == HALT
            self._socket.setblocking(until_answered)
            try:
                data = self._socket.recv(4096)
            except BlockingIOError:
                return False
            finally:
                self._socket.setblocking(True)
            if not data:
                raise OSError("connection closed")
            self._buffer += data

    def _send_memory(self, request: bytes) -> None:
        address = int.from_bytes(request[:8], "little")
        length = int.from_bytes(request[8:], "little")
        try:
            data = self._read(address, min(length, _MAX_READ))
            self._socket.sendall(BYTES + len(data).to_bytes(4, "little") + data)
        except (OSError, OverflowError):
            self._socket.sendall(BYTES + UNMAPPED.to_bytes(4, "little"))
