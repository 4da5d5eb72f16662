"""Memory of a guest under the probe: read by a vCPU at its next event, or saved by QEMU's monitor."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Final

from gdbext.arch import paging
from gdbext.errors import CtxwatchError
from gdbext.sources.ring_file import RingFile

_ANSWER: Final = 0.01
"""Seconds for a vCPU to answer a request for memory: as long as it runs, its next event is near."""
_LOOK: Final = 0.00005
"""Seconds until the first look for an answer. Each next wait is twice as long: where there are more vCPUs than cores,
every look takes one from a vCPU."""


class GuestMemory:
    """ring: the probe's.  ask: has QEMU's monitor run a command; raises CtxwatchError."""

    def __init__(self, ring: RingFile, ask: Callable[[str, Mapping[str, object]], object]) -> None:
        self._ring = ring
        self._ask = ask

    def by_vcpu(self, address: int, length: int, cpu: int) -> bytes | None:
        """Guest virtual memory as vCPU `cpu` maps it at its next event, which costs a hundredth of what QEMU's monitor
        takes, and keeps its main thread from nothing. None where it does not answer soon: it idles, or QEMU has stopped
        it."""
        window = self._ring.memory
        if length > len(window["data"][0]) or cpu >= len(self._ring.control):
            return None
        number = int(window["asked"][0])
        if int(window["answered"][0]) != number:  # still the one before
            return None
        number = (number + 1) & 0xFFFF_FFFF
        window["address"], window["length"] = address, length
        window["cpu"] = cpu  # in this order: see window.h
        window["asked"] = number
        deadline, wait = time.monotonic() + _ANSWER, _LOOK
        while int(window["answered"][0]) != number:
            if time.monotonic() > deadline:
                return None
            time.sleep(wait)
            wait *= 2
        return bytes(window["data"][0][:length]) if int(window["found"][0]) == length else None

    def by_monitor(self, address: int, length: int, cpu: int) -> bytes:
        """Guest virtual memory as vCPU `cpu` maps it now; raises OSError."""
        signed = address - (1 << 64) if address >> 63 else address  # QEMU before 9 takes a signed number
        return self._save("memsave", {"val": signed, "size": length, "cpu-index": cpu})

    def under(self, address: int, length: int, cr3: int) -> bytes:
        """Guest virtual memory as 64-bit code running under `cr3` sees it, wherever the vCPUs are; raises OSError."""
        found = b""
        while len(found) < length:
            at = address + len(found)
            here = paging.physical(self.physical, cr3, at)
            if here is None:
                raise OSError(f"{at:#x} is not mapped under CR3 {cr3:#x}")
            found += self.physical(here, min(length - len(found), paging.PAGE - at % paging.PAGE))
        return found

    def physical(self, address: int, length: int) -> bytes:
        """Guest physical memory; raises OSError."""
        return self._save("pmemsave", {"val": address, "size": length})

    def _save(self, command: str, asked: Mapping[str, int]) -> bytes:
        """What QEMU's `command` saves of the guest's memory; raises OSError."""
        # Into a file without a name, which is gone with us however we end.
        handle = os.memfd_create("ctxwatch-memory", os.MFD_CLOEXEC)
        try:
            self._ask(command, {**asked, "filename": f"/proc/{os.getpid()}/fd/{handle}"})
            return os.pread(handle, asked["size"], 0)
        except CtxwatchError as error:
            if "open" not in error.what + error.why:
                raise OSError(str(error)) from error
        finally:
            os.close(handle)
        return self._save_to_file(command, asked)

    def _save_to_file(self, command: str, asked: Mapping[str, int]) -> bytes:
        """For a QEMU that does not see our process, as from inside a container."""
        dump = self._ring.path.with_suffix(".memory")
        try:
            self._ask(command, {**asked, "filename": str(dump)})
            return dump.read_bytes()
        except CtxwatchError as error:
            raise OSError(str(error)) from error
        finally:
            dump.unlink(missing_ok=True)
