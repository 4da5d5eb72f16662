"""Watching through the probe that the guest's QEMU has loaded: GDB sets no breakpoint and stays free meanwhile.

A thread takes the events out of the ring and judges them. It never touches GDB, which may be asked by its own thread
alone: names come from a snapshot of GDB's symbols, memory from QEMU's monitor.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

import gdb
import numpy as np

from gdbext.errors import CtxwatchError, EnvironmentUnusable
from gdbext.events.row import Batch, Flag, Kind, empty
from gdbext.gdb import symbols
from gdbext.gdb.guest import named
from gdbext.gdb.judging import Judging
from gdbext.gdb.target import Target
from gdbext.gdb.threads import unsignalled
from gdbext.profiles.profile import Profile
from gdbext.qemu.images import Symbols
from gdbext.qemu.qmp import Qmp
from gdbext.report.document import QemuFacts
from gdbext.rules.codes import ERROR
from gdbext.rules.finding import Finding
from gdbext.rules.gslog import GsLog
from gdbext.sources.knowledge import Knowledge
from gdbext.sources.probe import ProbeSource, begins_anew
from gdbext.sources.ring_file import RingFile

_NAP: Final = (0.001, 0.02)
"""Shortest and longest pause between looks at an empty ring, in seconds."""
_YIELD: Final = 0.0005
_ANSWER: Final = 5.0
"""Seconds QEMU's monitor gets to answer."""
_LAST_WORDS: Final = 1.0
"""Seconds from the end of the events to the end of QEMU, at most."""
_SOCKET: Final = re.compile(r"\bunix:([^,\s]+)")


def find(guest: Target) -> tuple[Path, Path]:
    """The ring and the QMP socket of the QEMU that GDB is attached to, as ``ctxwatch qemu-args`` lays them out.

    Raises EnvironmentUnusable where it has none.
    """
    for name in _SOCKET.findall(guest.monitor("info chardev")):
        monitor = Path(name)
        ring = monitor.with_suffix(".ring")
        if ring != monitor and ring.is_file():
            return ring, monitor
    raise EnvironmentUnusable(
        "this guest has no probe", "its QEMU was not told to load one", "add $(ctxwatch qemu-args) to its command line"
    )


class _Guest:
    """Memory and names for the rules."""

    def __init__(self, source: ProbeSource, names: Symbols) -> None:
        self._source, self._names = source, names

    def read(self, address: int, length: int) -> bytes:
        """Guest virtual memory; raises OSError where it is unmapped."""
        try:
            return self._source.read_memory(address, length)
        except CtxwatchError as error:
            raise OSError(str(error)) from error

    def symbol(self, address: int) -> str | None:
        """``function+0x12``, or None where nothing is named."""
        return self._names.name(address)


class ProbeWatch:
    """One watch. ``say`` shows the user a line and may be called from any thread.

    Raises CtxwatchError where the guest has no probe or somebody else reads it.
    """

    def __init__(
        self,
        guest: Target,
        profile: Profile,
        codes: Collection[str] | None,
        halt: bool,
        say: Callable[[str], None],
        found: Callable[[Finding], None],
    ) -> None:
        self.target = guest
        self.gs = GsLog()
        self.failed: CtxwatchError | None = None
        self.halted: tuple[int, int] | None = None
        """CPU and RIP at which the guest is made to stop, until it goes on."""
        self._say = say
        self._halt = halt
        self._lock = threading.RLock()
        self._wanted = 0
        self._closing = threading.Event()
        self._ended = False
        self._died = False
        self._resets_asked = 0
        self._last = 0
        self._events = 0
        with contextlib.ExitStack() as undo:
            ring_path, monitor = find(guest)
            ring = RingFile.attach(ring_path)
            undo.callback(ring.close)
            with unsignalled():
                self._qmp = Qmp(monitor, _ANSWER)
            undo.callback(self._qmp.close)
            self._source = ProbeSource(ring, self._qmp, halt=halt, retry=False)
            self._names = symbols.snapshot()
            knowledge = Knowledge(profile, self._names, say)
            self._guest = _Guest(self._source, self._names)
            self._resets_asked = self._source.resets_asked
            self.judging = Judging(self._source, self._guest, knowledge, codes, found, may_wait=not halt)
            undo.pop_all()
        self._thread = threading.Thread(target=self._follow, name="ctxwatch events", daemon=True)
        with unsignalled():
            self._thread.start()

    # What commands ask for

    @property
    def armed(self) -> bool:
        """Events come from the first on."""
        return True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is judged meanwhile: findings, counts and GS may be read. A Ctrl-C waits until it is over."""
        self._wanted += 1
        try:
            with unsignalled(), self._lock:
                yield
        finally:
            self._wanted -= 1

    def beginning(self) -> str:
        """What is told when it begins."""
        before = ", the latest events before it too" if self._source.past else ""
        return f"Watching through the probe in QEMU (plugin API {self._source.plugin_api}){before}; continue to go on."

    def ending(self) -> str:
        """What is told when it has ended."""
        return f"{self._events} events were seen, {self._source.lost} lost"

    def status(self) -> list[str]:
        """What is watched, line by line."""
        lines = [f"Watching through the probe in QEMU (plugin API {self._source.plugin_api}), {self._events} events."]
        if self._source.lost:
            lines.append(f"  {self._source.lost} events were lost")
        return lines

    def record(self, path: Path, guest: str, qemu: QemuFacts, note: Callable[[str], None]) -> None:
        """Record from now on; raises UsageError."""
        facts = QemuFacts(qemu.version, qemu.accel, self._source.plugin_api)
        with self.held(), unsignalled():
            self.judging.record(path, guest, self._guest, facts, note)

    def end_recording(self) -> Path | None:
        """End it; where it is."""
        with self.held():
            return self.judging.end_recording()

    def stopped(self) -> str:
        """Where the guest was made to stop; QEMU tells GDB of an interrupt and no more."""
        halted, self.halted = self.halted, None
        if halted is None:
            return ""
        cpu, rip = halted
        for thread in gdb.selected_inferior().threads():
            if thread.ptid[1] - 1 == cpu:
                thread.switch()
        pc = int(gdb.newest_frame().pc())
        if pc == rip:
            return f"stopped at {named(pc)}, the first instruction of the wrong context"
        return f"stopped at {named(pc)}: an interrupt came before the wrong context's {named(rip)}"

    def tidy(self) -> None:
        """The guest stands still for the user: judge all that it did until now."""
        with self.held():
            self._guarded(self._drain)

    def shut_down(self, died: bool) -> None:
        """QEMU has stopped the machine for good; `died`: not because the guest asked for it."""
        self.tidy()
        if died:
            with self.held():
                self._guarded(self._die)

    def close(self) -> None:
        """Leave the probe to itself; the guest goes on. Idempotent."""
        self._closing.set()
        self._thread.join()
        with self.held():
            self._guarded(self._drain)
            self._source.close()
            self._qmp.close()
            self.judging.end_recording()

    # The thread

    def _follow(self) -> None:
        self._guarded(self._run)

    def _run(self) -> None:
        nap = _NAP[0]
        while not self._closing.is_set() and not self._ended and self.failed is None:
            while self._wanted and not self._closing.is_set():
                self._closing.wait(_YIELD)
            with self._lock:
                busy = self._step()
            nap = _NAP[0] if busy else min(2 * nap, _NAP[1])
            if not busy:
                self._closing.wait(nap)

    def _drain(self) -> None:
        while self._step():
            pass

    def _guarded(self, action: Callable[[], None]) -> None:
        """Do it; what goes wrong ends the watch and is told in one line."""
        try:
            action()
        except CtxwatchError as error:
            self._fail(error)
        except Exception as error:
            if os.environ.get("CTXWATCH_TRACEBACK"):
                traceback.print_exc()
            self._fail(CtxwatchError("watching failed", f"{type(error).__name__}: {error}"))

    def _fail(self, error: CtxwatchError) -> None:
        """Nobody judges any more: let all that wait go on."""
        self.failed = error
        with contextlib.suppress(CtxwatchError):
            self._source.set_halt(False)
        self._say(f"{error}; the guest runs on unwatched")

    def _step(self) -> bool:
        """Take and judge what is there; False if nothing was."""
        if self._ended or self.failed is not None:
            return False
        batch = self._source.read(0.0)
        if batch is None:
            self._ended = True
            self._await_end()
        if batch is None or not len(batch):
            if self._was_reset():
                self._die()
            return False
        self._events += len(batch)
        self._last, self._died = int(batch["seq"].max()), False
        if anew := begins_anew(batch):
            self._say(anew)
        self._settle(batch)
        self._judge(batch)
        return True

    def _await_end(self) -> None:
        """QEMU is about to end: let it finish its last words on the monitor."""
        deadline = time.monotonic() + _LAST_WORDS
        while self._qmp.alive and time.monotonic() < deadline:
            time.sleep(_YIELD)

    def _was_reset(self) -> bool:
        """Whether QEMU has told that the guest reset the machine and the guest had not asked for it: a triple fault."""
        told = False
        while (event := self._qmp.event(0)) is not None:
            reset = event.get("event") in ("RESET", "SHUTDOWN")
            told |= reset and event.get("data", {}).get("reason") == "guest-reset"
        if told and self._source.resets_asked > self._resets_asked:
            self._resets_asked = self._source.resets_asked
            return False
        return told

    def _die(self) -> None:
        """The machine died behind the last event; told once."""
        if not self._died:
            self._died = True
            row = empty(1)
            row["seq"], row["time"], row["kind"] = self._last + 1, time.monotonic_ns(), Kind.DIED
            row["flags"] = Flag.NO_BASES | Flag.NO_KERNEL_GS | Flag.UNREADABLE
            self._judge(row)

    def _settle(self, batch: Batch) -> None:
        """Find out by how much KASLR has moved the kernel, if it may have."""
        if self._names.slide is None:
            for row in np.flatnonzero(batch["kind"] == Kind.ENTRY):
                if self._names.settle(int(batch["vector"][row]), int(batch["pc"][row])):
                    return

    def _judge(self, batch: Batch) -> None:
        self.gs.put(batch)
        found = self.judging.feed(batch)
        errors = [f for f in found if f.severity == ERROR and f.event > self._source.past] if self._halt else []
        waiting = np.flatnonzero(batch["flags"] & Flag.WAITING)
        guilty = {int(finding.row["seq"][0]) for finding in errors if finding.row is not None}
        standing = [row for row in waiting if int(batch["seq"][row]) in guilty]
        if standing:
            cpu = int(batch["cpu"][standing[0]])
            self.halted = cpu, int(batch["rip"][standing[0]])
            self._source.release(cpu, True)
        elif errors:
            self._source.pause()
        else:
            for row in waiting:
                self._source.release(int(batch["cpu"][row]), False)
