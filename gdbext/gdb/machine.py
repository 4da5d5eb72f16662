"""What is known of the guest's entries and exits, and how it is kept up to date while the guest runs. Pure.

The tables the guest has now are explored; where it loads others, rewrites a gate or sets up a system-call entry, the
stops planned here tell, and the plan is made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from gdbext.arch.registers import MSR_CSTAR, MSR_LSTAR, MSR_STAR, MSR_SYSENTER_EIP
from gdbext.code.disasm import Code
from gdbext.code.paths import Reach, explore
from gdbext.code.windows import Window, windows
from gdbext.events.row import Batch, How, Kind
from gdbext.gdb import discover, image, plan
from gdbext.gdb.capture import Capture
from gdbext.gdb.image import Segment
from gdbext.gdb.plan import Maker, Plan, Stop
from gdbext.gdb.tables import Tables

Read = Callable[[int, int], bytes]

_OFTEN: Final = 64
"""Stops after a change of tables during which the gates are read again at each."""
_SELDOM: Final = 32
"""Afterwards they are read again at every so many stops."""
_STRIKES: Final = 8
"""A wrmsr of unknown purpose is dropped after so many stops that were of no interest."""


class Machine:
    """The guest's tables, its system-call entries and what they reach.

    ``plan``: where to stop, and for what; made anew by :meth:`update`. ``capture`` makes the rows.
    """

    def __init__(self, read: Read, kernel: Iterable[Segment], entry_point: int | None = None) -> None:
        self.capture = Capture(read)
        self.tables = Tables(read)
        self.syscalls: set[int] = set()
        self.sysenters: set[int] = set()
        self.reach: Reach | None = None
        self.code: Code | None = None
        self._read = read
        self._windows: list[Window] | None = None
        self._countdown = 0
        self._strikes: dict[int, int] = {}
        self._standing: Plan = {}
        if entry_point is not None:
            self._stand(entry_point, self._start)
        self._watch_image(list(kernel))
        self.plan: Plan = dict(self._standing)

    @property
    def windows(self) -> list[Window]:
        """The windows in what was reached; found when first asked for."""
        if self._windows is None:
            self._windows = windows(self.code, self.reach) if self.code and self.reach else []
        return self._windows

    def update(self) -> None:
        """Explore from the handlers and system-call entries known now and plan the stops anew."""
        handlers = self.tables.handlers()
        self.code = Code(self._read, self.tables.bits)
        self.reach = explore(self.code, discover.entries(handlers, self.syscalls, self.sysenters))
        self._windows = None
        for address in self.reach.lidt:
            self._stand(address, self._lidt)
        made = plan.build(self.capture, self.code, self.reach, handlers, self.syscalls, self.sysenters)
        self.plan = {address: list(makers) for address, makers in self._standing.items()}
        for address, makers in made.items():
            self.plan.setdefault(address, []).extend(makers)
        self._countdown = _OFTEN

    def follow(self) -> bool:
        """Called at each stop: look for changed gates where it is time to. True if there is a new plan."""
        self._countdown -= 1
        if (self._countdown > 0 or self._countdown % _SELDOM == 0) and self.tables.refresh():
            self.update()
            return True
        return False

    def reset(self) -> None:
        """The machine starts again from its reset vector."""
        self.tables.clear()
        self.syscalls.clear()
        self.sysenters.clear()
        self.reach = self.code = None
        self._windows = None
        self.plan = dict(self._standing)

    def _watch_image(self, kernel: list[Segment]) -> None:
        for address in image.lidt_sites(kernel):
            self._stand(address, self._lidt)
        for site in image.msr_sites(kernel):
            self._stand(site.address, self._wrmsr)

    def _stand(self, address: int, maker: Maker) -> None:
        makers = self._standing.setdefault(address, [])
        if maker not in makers:
            makers.append(maker)

    def _start(self, stop: Stop) -> Batch | None:
        """The kernel's first instruction is about to run: for the second time after a reset."""
        if self.reach is None:
            return None
        self.reset()
        return self.capture.died(stop.cpu)

    def _lidt(self, stop: Stop) -> Batch | None:
        """A ``lidt`` is about to run: its table counts from now on."""
        insn = Code(self._read, stop.bits).insn(stop.registers["rip"])
        operand = plan.table_operand(insn, stop.registers) if insn else None
        if operand is None:
            return None
        word = 8 if stop.bits == 64 else 4
        try:
            raw = self._read(operand, 2 + word)
        except OSError:
            return None
        limit, base = int.from_bytes(raw[:2], "little"), int.from_bytes(raw[2:], "little")
        self.tables.load(stop.cpu, base, limit, stop.bits)
        self._countdown = _OFTEN + 1
        return self.capture.plain(Kind.IDT, stop.cpu, stop.registers, stop.bits, addr=base, value=limit)

    def _wrmsr(self, stop: Stop) -> Batch | None:
        """A ``wrmsr`` that may set up system calls is about to run."""
        msr, value = stop.registers["rcx"] & 0xFFFF_FFFF, plan.written(stop.registers)
        if msr not in image.ENTRY_MSRS:
            self._strike(stop.registers["rip"])
            return None
        if msr == MSR_STAR:
            self.capture.star = value
        elif value:
            known = self.sysenters if msr == MSR_SYSENTER_EIP else self.syscalls
            if value not in known and msr in (MSR_LSTAR, MSR_CSTAR, MSR_SYSENTER_EIP):
                known.add(value)
                if self.reach is not None:
                    self.update()
        return self.capture.plain(Kind.BASE, stop.cpu, stop.registers, stop.bits, addr=msr, value=value, how=How.WRMSR)

    def _strike(self, address: int) -> None:
        self._strikes[address] = self._strikes.get(address, 0) + 1
        if self._strikes[address] >= _STRIKES:
            self._standing.pop(address, None)
            makers = self.plan.get(address, [])
            if self._wrmsr in makers:
                makers.remove(self._wrmsr)
