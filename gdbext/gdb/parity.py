"""Which GS base is active on each vCPU, by count of the swapgs seen; CPL 3 means the user's."""

from __future__ import annotations

from gdbext.events.row import Batch, Flag, How, Kind


class Parity:
    """The state per vCPU: True while the kernel's base is active, absent before CPL 3 was seen."""

    def __init__(self) -> None:
        self._kernel: dict[int, bool] = {}

    def note(self, row: Batch) -> None:
        """Put the parity before `row` takes effect into its flags, then let it take effect."""
        cpu, kind = int(row["cpu"][0]), int(row["kind"][0])
        user = int(row["cs"][0]) & 3 == 3 or int(row["how"][0]) in (How.SYSCALL, How.SYSENTER, How.SYSRET, How.SYSEXIT)
        if kind == Kind.ENTRY and user:
            self._kernel[cpu] = False
        kernel = self._kernel.get(cpu)
        if kernel is not None:
            row["flags"] |= Flag.PARITY_KNOWN | (Flag.PARITY_KERNEL if kernel else 0)
        if kind == Kind.EXIT and user:
            self._kernel[cpu] = False
        elif kind == Kind.SWAPGS and kernel is not None:
            self._kernel[cpu] = not kernel
