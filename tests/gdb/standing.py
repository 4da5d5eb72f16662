"""A gdbstub whose steps stand still: QEMU's, seen through a relay that answers every other step untaken.

QEMU does so now and then: a vCPU that is kicked before it ran the one instruction has ended its step.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_PACKET = re.compile(rb"\$([^#]*)#..", re.DOTALL)
_STEP = re.compile(rb"vCont;s")
_STOPPED = re.compile(rb"\$T05[^#]*#..", re.DOTALL)


class StandingStub:
    """Relays one GDB's connection to the gdbstub at `stub`, whose guest is `kernel`. ``stood``: the steps that stood
    still. A context manager."""

    def __init__(self, stub: Path, kernel: Path) -> None:
        self.socket = stub.with_suffix(".standing")
        self.connect = (f"file {kernel}", f"target remote {self.socket}")
        self.stood = 0
        self._stub = socket.socket(socket.AF_UNIX)
        self._stub.connect(str(stub))
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.socket))
        self._listening.listen(1)
        self._gdb: socket.socket | None = None
        self._stands = False
        self._stopped = b""
        self._relay = threading.Thread(target=self._serve, daemon=True)
        self._relay.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in (self._listening, self._stub, *([self._gdb] if self._gdb else ())):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._relay.join(10)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self._gdb, _ = self._listening.accept()
            answers = threading.Thread(target=self._take_answers, args=(self._gdb,), daemon=True)
            answers.start()
            self._take_requests(self._gdb)
            answers.join()

    def _take_requests(self, gdb: socket.socket) -> None:
        rest = b""
        while data := gdb.recv(65536):
            rest += data
            while found := _PACKET.search(rest):
                before, packet, rest = rest[: found.start()], found[0], rest[found.end() :]
                stands = bool(_STEP.match(found[1])) and not self._stands and bool(self._stopped)
                if _STEP.match(found[1]):
                    self._stands = stands
                if stands:
                    self.stood += 1
                    self._stub.sendall(before)
                    gdb.sendall(b"+" + self._stopped)
                else:
                    self._stub.sendall(before + packet)
            if b"$" not in rest:  # acknowledgements, a Ctrl-C
                self._stub.sendall(rest)
                rest = b""

    def _take_answers(self, gdb: socket.socket) -> None:
        with contextlib.suppress(OSError):
            rest = b""
            while data := self._stub.recv(65536):
                rest = (rest + data)[-4096:]
                for found in _STOPPED.finditer(rest):
                    self._stopped = found[0]
                gdb.sendall(data)
