"""The collector: from ``ctx watch`` to ``ctx watch off``, on one connection.

It begins with the tables the guest has, or waits for the guest to load some, and puts breakpoints where contexts are
interrupted, resumed and switched. Each stop makes a row for the sink and lets the guest go on.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gdbext.arch import flags as rf
from gdbext.code.disasm import Code
from gdbext.code.listing import listing, text
from gdbext.code.storing import stored
from gdbext.errors import CtxwatchError
from gdbext.events.row import Batch, Kind
from gdbext.gdb import image, survey, symbols, target
from gdbext.gdb.guest import named
from gdbext.gdb.interrupts import Interrupts
from gdbext.gdb.judging import Judging
from gdbext.gdb.layout import Registers
from gdbext.gdb.machine import Machine
from gdbext.gdb.parity import Parity
from gdbext.gdb.plan import Stop
from gdbext.gdb.points import Points
from gdbext.gdb.sinks import Sink
from gdbext.gdb.stores import StorePoints
from gdbext.gdb.target import Target
from gdbext.gdb.threads import unsignalled
from gdbext.qemu.images import Symbols
from gdbext.report.document import QemuFacts
from gdbext.rules.gslog import GsLog

_BEFORE_SHUTDOWN: Final = 4
"""Instructions between the ``out`` that turns the machine off and the one at which it stops, at most."""


class Watch:
    """One watch. ``say`` shows the user a line, from wherever it is called.

    sink: takes the rows.  judging: what stands behind it, if the rows are judged here.  stores: its watchpoints.
    """

    def __init__(
        self,
        guest: Target,
        sink: Sink,
        judging: Judging | None,
        stores: StorePoints,
        kernel: Path | None,
        say: Callable[[str], None],
        interrupts: Interrupts,
    ) -> None:
        self.target = guest
        self._interrupts = interrupts
        self.sink = sink
        self.judging = judging
        self.parity = Parity()
        self.gs = GsLog()
        self.stops = 0
        self.halted_at: int | None = None
        """Where the last stop was made for the user, until the guest goes on."""
        self.failed: CtxwatchError | None = None
        self._closed = False
        self._shut = False
        self._image = image.segments(kernel) if kernel else []
        entry_point = image.entry_point(kernel) if kernel else None
        self._last: dict[int, Registers] = {}
        self._flat: set[int] = set()
        """Selectors of segments known to begin at 0."""
        self.machine = Machine(guest.read, self._image, entry_point)
        self.points = Points(self.hit)
        self.stores = stores
        stores.hit = self.stored
        self._say = say

    @property
    def armed(self) -> bool:
        """Handlers are known; False while the guest has not loaded an IDT yet."""
        return self.machine.reach is not None

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Rows are judged in GDB's thread alone."""
        return contextlib.nullcontext()

    def beginning(self) -> str:
        """What is told when it begins."""
        if self.armed:
            return f"Watching at {len(self.points)} addresses; continue to go on."
        return "The guest has no interrupt table yet: watching begins when it loads one. Continue to go on."

    def ending(self) -> str:
        """What is told when it has ended."""
        return f"{self.stops} stops were made"

    def status(self) -> list[str]:
        """What is watched, line by line."""
        if not self.armed:
            return ["Watching; the guest has not loaded an interrupt table yet."]
        machine = self.machine
        lines = [f"Watching at {len(self.points)} addresses, {self.stops} stops so far."]
        lines += [f"  interrupt table {base:#x}, limit {limit:#x}" for base, limit in machine.tables.describe()]
        for title, found in (("syscall", machine.syscalls), ("sysenter", machine.sysenters)):
            lines += [f"  {title} entry {named(address)}" for address in sorted(found)]
        if not machine.syscalls and not machine.sysenters:
            lines.append("  no system-call entry found yet")
        if machine.reach is not None and machine.reach.indirect:
            lines.append(f"  {len(machine.reach.indirect)} indirect jumps and calls could not be followed")
        return lines

    def start(self) -> None:
        """Arm with what the guest has now, or wait for its first ``lidt``; the target is stopped.

        Without an image that lidt is not known: who reads a stream has the guest stopped now and then (see tidy), of a
        person that cannot be asked.
        """
        if not survey.learn(self.target, self.machine, self._image) and not self._image and self.judging is not None:
            raise CtxwatchError(
                "the guest has not loaded an interrupt table yet",
                "no kernel image is known that would tell where it will",
                "give one with the file command, or watch once the kernel runs",
            )
        self._refuse_moved()
        self.points.cover(self.machine.plan)

    def record(self, path: Path, guest: str, qemu: QemuFacts, note: Callable[[str], None]) -> None:
        """Record from now on; raises CtxwatchError."""
        if self.judging is None:
            raise CtxwatchError("the events go elsewhere", "this watch sends them to a socket", "record them there")
        self.sink.settle()
        names = _Recorded(self.target.read, symbols.snapshot())
        with unsignalled():
            self.judging.record(path, guest, names, qemu, note)

    def end_recording(self) -> Path | None:
        """End the recording; where it is, None if there was none. Raises CtxwatchError while the guest runs."""
        if self.judging is None or self.judging.recording is None:
            return None
        if target.running():
            why = "its last events are judged with its memory, which GDB reads only while it stands still"
            raise CtxwatchError("the guest is running", why, target.STOP_IT)
        self.sink.settle()
        return self.judging.end_recording()

    def stopped(self) -> str:
        """Our breakpoints are silent: where the guest stands if one of them has stopped it."""
        at, self.halted_at = self.halted_at, None
        if at is None:
            return ""
        insn = self.machine.code.insn(at) if self.machine.code else None
        return f"stopped before {named(at)}" + (f": {text(insn)}" if insn else "")

    def hit(self, address: int) -> bool:
        """A vCPU stands at `address`; True stops it for the user. Never raises: what goes wrong ends the watch."""
        return self._stop_at(address, lambda: self._hit(address))

    def stored(self, start: int, end: int, address: int) -> bool:
        """A vCPU stands at `address`, behind a store from `start` to before `end`; True stops it for the user. Never
        raises."""
        return self._stop_at(address, lambda: self._store(start, end, address))

    def _stop_at(self, address: int, take: Callable[[], bool]) -> bool:
        if self.failed is None and self._take(take):
            self.halted_at = address
            return True
        # A request to stop may have been lost on its way to QEMU (see gdbext.gdb.interrupts).
        if self._interrupts.wanted:
            self.halted_at = address
            return True
        return False

    def _take(self, take: Callable[[], bool]) -> bool:
        try:
            return take()
        except CtxwatchError as error:
            self.failed = error
        except Exception as error:
            if os.environ.get("CTXWATCH_TRACEBACK"):
                traceback.print_exc()
            self.failed = CtxwatchError("watching failed", f"{type(error).__name__}: {error}")
        if not self._closed:  # else the guest is gone, which has been told
            self.sink.fail(self.failed)
            self._say(f"{self.failed}; the guest runs on unwatched")
        return False

    def tidy(self) -> None:
        """The guest stands still: look at its tables, and drop the breakpoints that are no longer planned."""
        self._take_passed()
        self.sink.settle()
        with contextlib.suppress(CtxwatchError, OSError):  # it may have stopped for good
            survey.follow(self.target, self.machine, self._image)
            if self.failed is None:
                self._take(self._refuse_moved)
            self.points.cover(self.machine.plan)
        self.points.keep_only(self.machine.plan)

    def _take_passed(self) -> None:
        """A stop for another reason may be at a breakpoint of ours, which GDB then goes on from without a word: QEMU
        delivers an interrupt that is pending before it stops, and the handler's first instruction is next."""
        if self._shut:
            return
        with contextlib.suppress(CtxwatchError, OSError):
            pc = self.target.registers()["rip"]
            if pc in self.machine.plan and self.hit(pc):
                self.halted_at = pc

    def close(self) -> None:
        """Remove everything; the target is stopped or gone."""
        self._closed = True
        self.points.clear()
        self.stores.clear()
        self.sink.close()

    def shut_down(self, died: bool) -> None:
        """QEMU has stopped the machine for good; `died`: the guest did not ask for it."""
        self._shut = True
        if died:
            self._put(self.machine.capture.died(self.target.cpu()))

    def _hit(self, address: int) -> bool:
        registers = self.target.registers(address)
        bits = target.mode(registers)
        if bits == 16 or registers["cs"] & 3:
            return False
        cpu = self.target.cpu()
        # QEMU now and then reports a step as done that did not move: the same stop then comes again.
        if self._last.get(cpu) == registers:
            return False
        self._last[cpu] = registers
        self.stops += 1
        stop = Stop(cpu, registers, bits)
        before = self.machine.plan
        halt = False
        for maker in list(before.get(address, ())):
            row = maker(stop)
            if row is not None:
                halt |= self._put(row)
        self.machine.follow()
        if self.machine.plan is not before:
            self._refuse_moved()
            self.points.cover(self.machine.plan)
        return halt

    def _refuse_moved(self) -> bool:
        """Raise CtxwatchError if a handler's segment begins elsewhere than at 0: QEMU stops at linear addresses and
        tells GDB EIP, which then knows none of its breakpoints again."""
        new = self.machine.tables.selectors() - self._flat if self.machine.tables.bits == 32 else set()
        for selector in sorted(new):
            base = self.target.segment_base(selector)
            if base:
                raise CtxwatchError(
                    f"the kernel's code segment {selector:#x} begins at {base:#x}",
                    "GDB's breakpoints are good only where segments begin at 0",
                    "watch it through the probe, which follows it there",
                )
            self._flat.add(selector)
        return False

    def _store(self, start: int, end: int, address: int) -> bool:
        registers = self.target.registers(address)
        bits = target.mode(registers)
        if bits == 16 or self.machine.code is None:
            return False
        self.stops += 1
        if registers["rflags"] & rf.IF:
            self.stores.give_up(registers["rsp"])
        found = stored(self.machine.code, registers, start, end)
        pc, at = (found.pc, max(found.address, start)) if found is not None else (registers["rip"], start)
        size = min(found.size if found is not None else 8, end - at, 8)
        before = dict(registers, rip=pc)
        if found is not None and found.pushed:
            before["rsp"] = registers["rsp"] + found.size
        value = int.from_bytes(self.target.read(at, size), "little")
        row = self.machine.capture.plain(Kind.STORE, self.target.cpu(), before, bits, addr=at, value=value, size=size)
        return self._put(row)

    def _put(self, row: Batch) -> bool:
        self.parity.note(row)
        self.gs.put(row)
        return self.sink.put(row)


class _Recorded:
    """The guest as the recorder sees it, whose thread may not ask GDB for names."""

    def __init__(self, read: Callable[[int, int], bytes], names: Symbols) -> None:
        self.read = read
        self.symbol = names.name


def asked_for(guest: Target) -> bool:
    """QEMU has stopped the machine for good: whether code that talks to a device asked for it. Else it died."""
    registers = guest.registers()
    code = Code(guest.read, target.mode(registers))
    around = listing(code, registers["rip"], before=_BEFORE_SHUTDOWN, after=0)
    return any(insn.name.startswith("out") for insn in around)
