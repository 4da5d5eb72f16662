"""Where the collector's rows go: into an engine in this process, or over a socket to whoever asked for them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np

from gdbext.arch.registers import GPR64
from gdbext.errors import CtxwatchError, NotCapable
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.gdb.judging import Judging
from gdbext.rules.codes import ERROR
from gdbext.sources.base import NO_WATCHPOINTS, Capability
from gdbext.sources.rowstream import (
    HALT,
    MAX_READ,
    MEMORY,
    ROWS,
    WATCH,
    answer,
    failure,
    parse_request,
    parse_watch,
    request_size,
)

WatchStores = Callable[[Sequence[tuple[int, int]]], bool]
"""Has the stores into these ranges told, and into no others; False if that cannot be."""


class Sink(Protocol):
    """Takes rows one by one, in order of ``seq``."""

    def put(self, row: Batch) -> bool:
        """Take a batch of one; True if the guest is to stop here."""

    def settle(self) -> None:
        """The guest stands still for the user: what was put so far is to take effect."""

    def fail(self, error: CtxwatchError) -> None:
        """No more rows, because of `error`."""

    def close(self) -> None:
        """No more rows."""


_BATCH: Final = 256
_DELAY: Final = 200_000_000
"""Nanoseconds a row may wait to be judged where nobody waits for the verdict."""
_REMEMBERED: Final = 4096
"""Interrupted contexts held against the exits, in number."""
_CONTEXT: Final = (*GPR64, "rip", "rflags", "cs", "ss")
_WHOLE: Final = (*_CONTEXT, "fs_base", "gs_base", "cr3")
_JUDGED: Final = frozenset({Kind.EXIT, Kind.SWITCH_IN, Kind.GS_ACCESS, Kind.DIED, Kind.STORE})
"""Events at which a rule may speak that is worth a halt."""


class Resumed:
    """Tells the exits that resume a context exactly as it was interrupted, so that nobody has to wait for a verdict."""

    def __init__(self) -> None:
        self._interrupted: set[bytes] = set()

    def needs_verdict(self, row: Batch) -> bool:
        """Note the event; True if a rule may have something to say about it."""
        kind, flags = int(row["kind"][0]), int(row["flags"][0])
        if kind not in (Kind.ENTRY, Kind.EXIT) or flags & Flag.UNREADABLE:
            return kind in _JUDGED
        user = int(row["cs"][0]) & 3 == 3 or int(row["how"][0]) == How.SYSRET
        context = b"".join(row[name].tobytes() for name in (_WHOLE if user else _CONTEXT))
        if kind == Kind.ENTRY:
            if len(self._interrupted) >= _REMEMBERED:
                self._interrupted.clear()
            self._interrupted.add(context)
            return False
        parity_fits = not flags & Flag.PARITY_KNOWN or bool(flags & Flag.PARITY_KERNEL) != user
        if context in self._interrupted and parity_fits:
            self._interrupted.discard(context)
            return False
        return True


class StoppedSource:
    """The guest at a stop of the collector, as the source of its rows: what else it can do is to be read."""

    name = "gdbstub"
    capabilities = Capability.MEMORY | Capability.FEW_STORES
    lost = 0

    def __init__(self, read: Callable[[int, int], bytes], watch: WatchStores) -> None:
        self._read = read
        self._watch = watch

    def read(self, timeout: float) -> Batch | None:
        """Refused: the collector puts its rows itself."""
        raise NotCapable("taking events", "the collector puts them")

    def release(self, cpu: int, halt: bool) -> None:
        """Refused: the collector's stop ends with its verdict."""
        raise NotCapable("releasing a vCPU", "it stands in a breakpoint")

    def read_memory(self, address: int, length: int, cpu: int = 0) -> bytes:
        """Guest virtual memory as the vCPU that has stopped sees it; raises OSError where it is unmapped."""
        return self._read(address, length)

    def set_watch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Put watchpoints there; raises NotCapable where QEMU takes none."""
        if not self._watch(ranges):
            raise NotCapable(NO_WATCHPOINTS, "QEMU takes none of that size", "use the probe")

    def close(self) -> None:
        """Nothing is held."""


class EngineSink:
    """Judges rows: at once where the guest is to halt on a verdict, else in batches, which are a hundred times
    cheaper."""

    def __init__(self, judging: Judging, halt: bool) -> None:
        self._judging = judging
        self._halt = halt
        self._rows: list[Batch] = []
        self._resumed = Resumed()

    def put(self, row: Batch) -> bool:
        """Take a batch of one; True if the guest is to halt: a finding of severity error was made."""
        self._rows.append(row)
        if self._halt:
            return self._resumed.needs_verdict(row) and self._judge()
        if len(self._rows) >= _BATCH or int(row["time"][0]) - int(self._rows[0]["time"][0]) > _DELAY:
            self._judge()
        return False

    def settle(self) -> None:
        """Judge what still waits, for the user is about to look."""
        self._judge()

    def fail(self, error: CtxwatchError) -> None:
        """The watch tells the user."""

    def close(self) -> None:
        """Judge what still waits and end the recording, if there is one."""
        self._judge()
        self._judging.end_recording()

    def _judge(self) -> bool:
        """Feed what has gathered; True if something severe was found."""
        if not self._rows:
            return False
        batch, self._rows = np.concatenate(self._rows), []
        return any(finding.severity == ERROR for finding in self._judging.feed(batch))


class StreamSink:
    """Sends rows to whoever opened the UNIX socket at `path` and serves its requests (gdbext.sources.rowstream).

    ``@NAME`` is a socket without a file (unix(7), abstract).

    With `wait`, the guest stands at each row on which a rule may speak until an answer comes.
    """

    def __init__(self, path: str, read: Callable[[int, int], bytes], watch: WatchStores, wait: bool) -> None:
        self._read = read
        self._watch = watch
        self._wait = wait
        self._resumed = Resumed()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = b""
        try:
            self._socket.connect("\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            raise CtxwatchError(f"nobody listens at {path}", error.strerror or str(error)) from error

    def put(self, row: Batch) -> bool:
        """Send a batch of one; True if the reader has the guest stop. Raises CtxwatchError if it is gone."""
        waiting = self._wait and self._resumed.needs_verdict(row)
        if waiting:
            row["flags"] |= Flag.WAITING
        try:
            self._socket.sendall(ROWS + row.tobytes())
            return self._serve(waiting)
        except OSError as error:
            raise CtxwatchError("the reader of the stream is gone", str(error)) from error

    def settle(self) -> None:
        """Serve the requests that have come; that the reader is gone shows at the next row."""
        with contextlib.suppress(OSError):
            self._serve(False)

    def fail(self, error: CtxwatchError) -> None:
        """Send the reader `error`, unless it is gone."""
        with contextlib.suppress(OSError):  # the reader is gone
            self._socket.sendall(failure(error))

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()

    def _serve(self, until_answered: bool) -> bool:
        """Handle the requests that are there; with `until_answered`, wait for the answer. True if it is HALT."""
        while True:
            while self._buffer and len(self._buffer) >= request_size(self._buffer):
                raw = self._take(request_size(self._buffer))
                if raw[:1] == MEMORY:
                    self._send_memory(raw)
                elif raw[:1] == WATCH:
                    self._socket.sendall(answer(b"\1" if self._watch(parse_watch(raw)) else None))
                elif until_answered:
                    return raw == HALT
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

    def _take(self, count: int) -> bytes:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _send_memory(self, raw: bytes) -> None:
        address, length = parse_request(raw)
        try:
            data: bytes | None = self._read(address, min(length, MAX_READ))
        except OSError:
            data = None
        self._socket.sendall(answer(data))
