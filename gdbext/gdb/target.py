"""The remote target as the collector needs it: registers in one packet, guest memory, QEMU's monitor."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import gdb

from gdbext.arch.descriptors import segment_base
from gdbext.errors import CtxwatchError, printable
from gdbext.gdb import layout
from gdbext.gdb.layout import Layout, Registers

_CHUNK: Final = 0xFFB
"""Bytes of a target description asked for at a time (QEMU's packets hold 4096)."""
_IDTR: Final = re.compile(r"\bIDT=\s*([0-9a-f]+)\s+([0-9a-f]+)")
_GDTR: Final = re.compile(r"\bGDT=\s*([0-9a-f]+)\s")
_ESCAPED: Final = re.compile(rb"}(.)", re.DOTALL)
STOP_IT: Final = "stop it with interrupt or Ctrl-C first"
"""What to do where the guest must stand still."""
LMA: Final = 1 << 10
"""EFER.LMA: IA-32e mode is active (Intel SDM vol. 3A, 2.2.1)."""
PE: Final = 1 << 0
"""CR0.PE: protected mode."""


class Idtr(NamedTuple):
    """``base``: linear address of the IDT; ``limit``: its bytes - 1."""

    base: int
    limit: int


class Target:
    """The connection GDB has now. Everything here needs the target stopped.

    One ``g`` packet gives all registers where the connection lets packets through (GDB ≥ 12, a remote target), which
    is several times cheaper than asking GDB for them one by one; where it does not, GDB is asked.
    """

    def __init__(self) -> None:
        inferior = gdb.selected_inferior()
        connection = getattr(inferior, "connection", None)
        if inferior.pid == 0 or (connection is not None and not connection.is_valid()):
            raise CtxwatchError("no guest", "GDB is not connected to one", "use target remote HOST:PORT")
        self.connection: Any = connection
        self.layout: Layout | None = None
        if connection is not None and hasattr(connection, "send_packet"):
            self.layout = self._find_layout()
        elif connection is not None and "remote" not in connection.type:
            raise CtxwatchError(
                "the target is no remote one", f"it is of type {connection.type!r}", "connect to QEMU's gdbstub"
            )

    def registers(self, pc: int | None = None) -> Registers:
        """The registers of the selected thread's vCPU. With `pc`, the address at which that vCPU is known to stand,
        the cheap way is held against it."""
        if self.layout is not None:
            raw = bytes(self.connection.send_packet("g"))
            if len(raw) == 2 * self.layout.size:
                try:
                    values = self.layout.decode(bytes.fromhex(raw.decode("ascii")))
                except ValueError:
                    values = {}
                if pc is None or values.get("rip") == pc:
                    return values
        return self._ask_gdb()

    def read(self, address: int, length: int) -> bytes:
        """Guest virtual memory as the selected thread's vCPU sees it; raises OSError where it is unmapped."""
        try:
            return bytes(gdb.selected_inferior().read_memory(address, length))
        except gdb.MemoryError as error:
            raise OSError(f"guest memory at {address:#x} is unmapped") from error
        except (OverflowError, ValueError) as error:
            raise OSError(f"{address:#x} is no address") from error

    def accepts_watch(self, address: int, length: int) -> bool:
        """Whether the stub takes a write watchpoint on `length` bytes; none is left behind."""
        if self.layout is None:
            return False
        taken = bytes(self.connection.send_packet(f"Z2,{address:x},{length:x}")) == b"OK"
        return taken and bytes(self.connection.send_packet(f"z2,{address:x},{length:x}")) == b"OK"

    @staticmethod
    def cpu() -> int:
        """The selected thread's vCPU index; 0 where none is selected."""
        thread = gdb.selected_thread()
        return cpu_of(thread) if thread is not None else 0

    @staticmethod
    def monitor(command: str) -> str:
        """What QEMU's monitor answers; "" where the stub has no monitor."""
        try:
            return str(gdb.execute(f"monitor {command}", to_string=True))
        except gdb.error:
            return ""

    def idtr(self) -> Idtr | None:
        """The selected vCPU's IDTR from the monitor, or None where it does not tell."""
        found = _IDTR.search(self.monitor(f"info registers {self.cpu()}"))
        return Idtr(int(found[1], 16), int(found[2], 16)) if found else None

    def segment_base(self, selector: int) -> int:
        """The linear address at which the segment `selector` of the selected vCPU's GDT begins; 0 where neither monitor
        nor memory tells."""
        found = _GDTR.search(self.monitor(f"info registers {self.cpu()}"))
        try:
            return segment_base(self.read(int(found[1], 16) + (selector & ~7), 8)) if found else 0
        except OSError:
            return 0

    def _find_layout(self) -> Layout | None:
        """The layout of a ``g`` reply; None if the stub describes none or GDB will not let packets through."""
        try:
            found = layout.fetch(self._annex)
            return found if len(bytes(self.connection.send_packet("g"))) == 2 * found.size else None
        except (gdb.error, CtxwatchError, ValueError):
            return None

    def _annex(self, name: str) -> str:
        """A file of the target description, in as many packets as it takes."""
        text = ""
        while True:
            packet = f"qXfer:features:read:{name}:{len(text):x},{_CHUNK:x}"
            raw = _ESCAPED.sub(lambda found: bytes([found[1][0] ^ 0x20]), bytes(self.connection.send_packet(packet)))
            reply = raw.decode("utf-8", "replace")
            if reply[:1] not in ("m", "l"):
                raise CtxwatchError("the stub describes no registers", printable(reply[:40]))
            text += reply[1:]
            if reply[0] == "l" or len(reply) == 1:
                return text

    @staticmethod
    def _ask_gdb() -> Registers:
        frame = gdb.newest_frame()
        values: Registers = {}
        for descriptor in frame.architecture().registers():
            known = layout.column(descriptor.name)
            if known in layout.WANTED:
                try:
                    value = int(frame.read_register(descriptor.name))
                except (gdb.error, ValueError):
                    continue
                values[known] = value & 0xFFFF_FFFF_FFFF_FFFF
        return values


def cpu_of(thread: Any) -> int:
    """The index of the vCPU that is GDB's `thread`: QEMU numbers its threads from 1."""
    return max(0, int(thread.ptid[1]) - 1)


def mode(registers: Registers) -> int:
    """Bits of the code that runs a handler now: 64 in IA-32e mode, 32 in protected mode, else 16."""
    if registers.get("efer", 0) & LMA:
        return 64
    return 32 if registers.get("cr0", PE) & PE else 16


def running() -> bool:
    """Whether the guest runs, so that GDB can neither read nor write it or list its threads. All vCPUs run or none."""
    thread = gdb.selected_thread()
    return bool(thread is not None and thread.is_valid() and thread.is_running())


def backwards() -> bool:
    """Whether GDB runs the guest backwards now: in a ``reverse-`` command, or as the user has set."""
    return "Reverse" in str(gdb.execute("show exec-direction", to_string=True))
