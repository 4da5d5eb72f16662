"""A small client of QEMU's gdbstub: memory, registers and breakpoints of a guest that stands (GDB manual, app. E)."""

from __future__ import annotations

import contextlib
import re
import select
import socket
from pathlib import Path
from typing import Final

ANSWER: Final = 10.0
"""Seconds that QEMU gets to answer a packet."""
_CHUNK: Final = 1024

_FIELDS: Final = (
    "rip",
    "eflags",
    "cs",
    "ss",
    "ds",
    "es",
    "fs",
    "gs",
    "fs_base",
    "gs_base",
    "k_gs_base",
    "cr0",
    "cr2",
    "cr3",
)
_WIDE: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), *_FIELDS)
_NARROW: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *_FIELDS)
NUMBERS: Final = {"x86_64": _WIDE, "i386": _NARROW}
"""Registers in the order in which QEMU's target descriptions number them (gdb-xml/i386-64bit.xml, i386-32bit.xml)."""

_THREAD: Final = re.compile(rb"thread:(?:p[0-9a-f]+\.)?([0-9a-f]+);")


class StubError(Exception):
    """The stub refused, or is gone."""


class Stub:
    """One connection. All addresses are guest virtual, as the vCPU asked maps them."""

    def __init__(self, path: Path, arch: str) -> None:
        """Connect to the UNIX socket `path` of a guest that stands; `arch`: QEMU's name of the target."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._numbers = {name: number for number, name in enumerate(NUMBERS[arch])}
        self._width = 8 if arch == "x86_64" else 4
        self._pending = b""
        self._ask(b"qSupported:multiprocess-")
        self._ask(b"QStartNoAckMode")
        self._acks = False

    _acks = True
    selected = 0
    """The vCPU whose registers and memory are seen."""

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes at `address`; raises StubError where they are not mapped."""
        parts = []
        for start in range(address, address + length, _CHUNK):
            said = self._ask(b"m%x,%x" % (start, min(_CHUNK, address + length - start)))
            if said.startswith(b"E"):
                raise StubError(f"{start:#x} cannot be read")
            parts.append(bytes.fromhex(said.decode("ascii")))
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Put `data` at `address`, whatever the page allows; QEMU translates the code there anew."""
        for start in range(0, len(data), _CHUNK):
            part = data[start : start + _CHUNK]
            if self._ask(b"M%x,%x:%s" % (address + start, len(part), part.hex().encode("ascii"))) != b"OK":
                raise StubError(f"{address + start:#x} cannot be written")

    def write_physical(self, address: int, data: bytes) -> None:
        """Put `data` at guest physical `address`."""
        self._ask(b"Qqemu.PhyMemMode:1")
        try:
            self.write(address, data)
        finally:
            self._ask(b"Qqemu.PhyMemMode:0")

    def select(self, cpu: int) -> None:
        """Let registers and memory be those of vCPU `cpu` from now on."""
        self._ask(b"Hg%x" % (cpu + 1))
        self.selected = cpu

    def register(self, name: str) -> int:
        """The value of a register."""
        return int.from_bytes(bytes.fromhex(self._ask(b"p%x" % self._numbers[name]).decode("ascii")), "little")

    def set_register(self, name: str, value: int) -> None:
        """Give a register another value; raises StubError where QEMU does not take it."""
        width = 4 if name in _FIELDS[1:8] else self._width
        data = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        if self._ask(b"P%x=%s" % (self._numbers[name], data.hex().encode("ascii"))) != b"OK":
            raise StubError(f"{name} cannot be written")

    def breakpoint(self, address: int, there: bool) -> None:
        """Set or remove a breakpoint."""
        self._ask(b"%s0,%x,1" % (b"Z" if there else b"z", address))

    def step(self, cpu: int) -> None:
        """Let vCPU `cpu` run one instruction, without interrupts and with the others standing."""
        self._send(b"vCont;s:%x" % (cpu + 1))
        if self.stopped(ANSWER) is None:
            raise StubError("no stop after a step")

    def go(self) -> None:
        """Let the guest run."""
        self._send(b"vCont;c")

    def stopped(self, timeout: float) -> int | None:
        """The vCPU at which a guest that was let go has stopped, None if it runs on after `timeout` seconds."""
        said = self._receive(timeout)
        if said is None:
            return None
        found = _THREAD.search(said)
        return int(found[1], 16) - 1 if found else 0

    def close(self) -> None:
        """Detach: breakpoints go, and the guest runs on."""
        with contextlib.suppress(OSError, StubError):
            self._ask(b"D")
        self._socket.close()

    def _ask(self, packet: bytes) -> bytes:
        self._send(packet)
        said = self._receive(ANSWER)
        if said is None:
            raise StubError(f"no answer to {packet[:20]!r}")
        return said

    def _send(self, packet: bytes) -> None:
        self._socket.sendall(b"$%s#%02x" % (packet, sum(packet) & 0xFF))

    def _receive(self, timeout: float) -> bytes | None:
        """The next packet, None if none came."""
        while True:
            start, end = self._pending.find(b"$"), self._pending.find(b"#")
            if 0 <= start < end and len(self._pending) >= end + 3:
                packet, self._pending = self._pending[start + 1 : end], self._pending[end + 3 :]
                if self._acks:
                    self._socket.sendall(b"+")
                return packet
            if not select.select([self._socket], [], [], timeout)[0]:
                return None
            more = self._socket.recv(65536)
            if not more:
                raise StubError("QEMU has closed the connection")
            self._pending += more
