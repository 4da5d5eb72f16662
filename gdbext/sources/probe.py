"""The probe as a source: rows out of the ring, verdicts back to waiting vCPUs, memory by these or by QEMU's monitor.

Which columns a row has beyond ``seq time pc kind how cpu mode cpl flags star``: entries and exits all; swapgs, base
and idt events rsp, cs, ss and the bases; cr3 events rsp, cs and cr3; gs accesses the general registers too; switches
the general registers, cs, cr3 and the stack; stores rsp, cs, cr3, and frame where they change a word of a live hardware
frame. What is not there is 0 and the NO_ flags say so.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from gdbext.errors import CtxwatchError, GuestFailed, NotCapable, UsageError
from gdbext.events.row import TRACKED_SLOTS, Batch, Flag, Kind
from gdbext.ledger.compare import space
from gdbext.sources.base import Capability
from gdbext.sources.memory import GuestMemory
from gdbext.sources.ring import (
    COUNTERS,
    LOGGED,
    TRACKED_GS,
    WATCH_BITS,
    WATCH_RANGES,
    Log,
    Option,
    Release,
    release_word,
    watch_granules,
)
from gdbext.sources.ring_file import Merger, RingFile, in_order

_NAP: Final = (0.0002, 0.002)
"""Shortest and longest sleep between looks at the ring, in seconds."""
_REST: Final = (0.02, 0.1)
"""Shortest and longest time, in seconds, that the ring is left alone after a batch where no vCPU waits for a verdict:
rows judged together cost a fraction, and the vCPUs may need the reader's core."""
_REST_SHARE: Final = 19
"""How many times as long as the last batch took to be judged, within these."""

_STOP_TIMEOUT: Final = 10.0
_PATIENCE: Final = 0.1
"""Seconds for QEMU to answer before vCPUs that stand in the probe are let go: it may be waiting for them."""
_TRIES: Final = 64
"""How often a halt may meet a pending interrupt, which QEMU delivers before it stops, and is tried again."""

_LOGGED: Final = ",".join((*LOGGED, "int"))
"""What QEMU is to log once the probe wants to know what is delivered: that takes microseconds each time."""

_RIP: Final = re.compile(r"\b[RE]IP=([0-9a-fA-F]+)")
_PROTECTED: Final = re.compile(r"\bCR0=[0-9a-f]+[13579bdf]\b")
_TABLE: Final = re.compile(r"^([GI])DT= +([0-9a-f]+) ([0-9a-f]+)", re.MULTILINE)
_SELECTOR: Final = re.compile(r"^(TR |LDT)=([0-9a-f]{4})\b", re.MULTILINE)
"""In what QEMU's monitor says to ``info registers``."""


class Monitor(Protocol):
    """The part of a QMP connection that is needed."""

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        timeout: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Any:
        """Run a QMP command and return its value, calling `meanwhile` until it is there; raises CtxwatchError when it
        fails."""


@dataclass(frozen=True, slots=True)
class TrackedVariable:
    """A variable sampled at every entry and exit. ``address``: guest virtual, or, with ``gs``, an offset from the
    kernel GS base of the CPU; ``size``: 1, 2, 4 or 8 bytes."""

    address: int
    size: int
    gs: bool = False


def begins_anew(batch: Batch) -> str:
    """What to say where the machine goes on in another state than it stood in; nothing where it does not."""
    restored = batch[batch["kind"] == Kind.RESTORED]
    if not len(restored):
        return ""
    how = "starts over: it was reset" if restored["mode"][0] == 16 else "goes on from a snapshot"
    return f"the guest {how}; contexts that were interrupted before are not expected back"


class ProbeSource:
    """Events of a QEMU that has loaded the probe.

    ring: made by :meth:`RingFile.create` before QEMU started, or attached to.  monitor: QMP, for memory and halting.
    halt: let vCPUs wait at exits that are not identical.  retry: a halt that met a pending interrupt may let the
    guest go on for a moment and be tried again; False where somebody else (GDB) follows stops and starts.
    Raises EnvironmentUnusable when the probe did not start.
    """

    name = "probe"

    def __init__(
        self, ring: RingFile, monitor: Monitor | None = None, *, halt: bool = False, retry: bool = True
    ) -> None:
        self._ring = ring
        self._monitor = monitor
        self._memory = GuestMemory(ring, self._ask)
        self._retry = retry
        self._merger = Merger(time.monotonic)
        self._given: float | None = None
        self._rested = 0.0
        self._ready: list[Batch] = []
        self._standing: dict[int, Batch] = {}
        self._open = True
        self._at_close: tuple[int, dict[str, int], int] = 0, {}, 0
        self.past = 0
        """Number of the last event that was there before us; no halt can be made for those."""
        if not len(ring.control):
            ring.map_rings()
        if ring.late:
            self._join_late()
        self._overwritten = self._counter("overwritten")
        ring.header["halt"] = int(halt)
        self.capabilities = Capability.GS_ACCESS | Capability.SWITCHES
        self.capabilities |= Capability.MEMORY | Capability.HALT if monitor is not None else Capability.NONE
        self.capabilities |= Capability.STORES if ring.has(Option.WATCH) else Capability.NONE
        self.capabilities |= Capability.SIMD if ring.has(Option.SIMD) else Capability.NONE

    def _join_late(self) -> None:
        old = in_order(self._ring.begin())
        if old is not None:
            old["flags"] &= ~np.uint16(Flag.WAITING)  # begin has let them go
            self._ready.append(old)
        self.past = int(self._ring.header["seq"][0])
        self._merger.start_behind(self.past)

    @property
    def plugin_api(self) -> int:
        """The plugin API generation of the probe."""
        return int(self._ring.header["api"][0])

    @property
    def counters(self) -> dict[str, int]:
        """What the probe has counted so far, over all CPUs; see :data:`gdbext.sources.ring.COUNTERS`."""
        return {name: self._counter(name) for name in COUNTERS} if self._open else self._at_close[1]

    @property
    def resets_asked(self) -> int:
        """How often the guest has asked for a reset so far: one that comes behind that is no death."""
        return self._counter("resets_asked") if self._open else 0

    @property
    def published(self) -> int:
        """Rows that the probe has written so far, over all CPUs."""
        return self._counter("head") if self._open else self._at_close[2]

    def _counter(self, name: str) -> int:
        return int(self._ring.control[name].sum())

    @property
    def lost(self) -> int:
        """Events overwritten before they were taken, or numbered and never seen."""
        if not self._open:
            return self._at_close[0]
        return self._counter("overwritten") - self._overwritten + self._merger.missing

    def read(self, timeout: float) -> Batch | None:
        """Return the next batch in order of ``seq``, empty after `timeout` seconds, None after QEMU has ended."""
        deadline = time.monotonic() + timeout
        nap = _NAP[0]
        while self._open:
            if not self._ready:
                self._rest(deadline)
                self._begin_log()
            if self._ready:  # asked behind that: QEMU may take its time to answer, and what comes meanwhile is drained
                return self._note(self._ready.pop(0))
            lives = self._ring.writer_lives()  # asked first: what it wrote before it ended is then all there
            rows = self._merger.merge(self._ring.take(), final=not lives)
            if rows is not None:
                return self._note(rows)
            if not lives:
                return None
            if time.monotonic() >= deadline:
                return self._ring.no_rows()
            time.sleep(min(nap, max(deadline - time.monotonic(), 0)))
            nap = min(nap * 1.5, _NAP[1])
        return None

    def _begin_log(self) -> None:
        """Have QEMU write down what it delivers, if the probe wants that; not while a vCPU waits for a verdict."""
        header = self._ring.header
        if int(header["log"][0]) != Log.WANTED or self._monitor is None or self._ring.control["waiting"].any():
            return
        try:
            said = self._ask("human-monitor-command", {"command-line": f"log {_LOGGED}"})
        except CtxwatchError as error:
            said = str(error)
        header["log"] = Log.REFUSED if said else Log.ON

    def _rest(self, deadline: float) -> None:
        """Let rows gather, as long as there is room for many more."""
        if self._given is not None:
            now = time.monotonic()
            self._rested = now + min(max(_REST_SHARE * (now - self._given), _REST[0]), _REST[1])
            self._given = None
        if not int(self._ring.header["halt"][0]):
            until = min(self._rested, deadline)
            while time.monotonic() < until and self._ring.writer_lives() and not self._ring.filling:
                time.sleep(_NAP[1])

    def _note(self, rows: Batch) -> Batch:
        """Remember in which events vCPUs wait."""
        self._given = time.monotonic()
        for index in np.flatnonzero(rows["flags"] & Flag.WAITING):
            self._standing[int(rows["cpu"][index])] = rows[index : index + 1].copy()
        for cpu in np.unique(rows["cpu"][rows["kind"] == Kind.RESTORED]).tolist():
            self.tell_tables(cpu)
        return rows

    def tell_tables(self, cpu: int) -> bool:
        """Tell the probe which descriptor tables vCPU `cpu` has loaded: it sees them loaded, and a machine that goes on
        from a snapshot loads none. False where there is nothing to tell: in real mode, or without an answer."""
        if self._monitor is None:
            return False
        command = {"command-line": "info registers", "cpu-index": cpu}
        try:
            said = str(self._ask("human-monitor-command", command))
        except CtxwatchError:  # no such vCPU, or QEMU has ended
            return False
        tables = {name: (int(base, 16), int(limit, 16)) for name, base, limit in _TABLE.findall(said)}
        if not _PROTECTED.search(said) or len(tables) != 2:
            return False
        selectors = {name: int(value, 16) for name, value in _SELECTOR.findall(said)}
        told = self._ring.control[cpu : cpu + 1]
        told["idt"], told["idt_limit"] = tables["I"]
        told["gdt"], told["gdt_limit"] = tables["G"]
        told["selectors"] = selectors.get("TR ", 0) | selectors.get("LDT", 0) << 16
        told["tables_told"] += 1
        return True

    def release(self, cpu: int, halt: bool) -> None:
        """Let the waiting vCPU `cpu` go on. With `halt` the guest stops on the resumed context's first instruction.

        Other vCPUs that wait are let go, too, when the guest stops: they stop where they resume. Raises NotCapable
        without a monitor, GuestFailed when QEMU does not stop.
        """
        row = self._standing.pop(cpu, None)
        if not halt:
            if row is not None:
                self._ring.control["release"][cpu] = release_word(int(row["seq"][0]), Release.GO)
            return
        if self._monitor is None:
            raise NotCapable("halting the guest", "there is no QMP connection", "give QEMU a -qmp socket")
        self.pause()
        if row is not None and self._retry:
            self._retry_halt(cpu, row)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Hold the guest meanwhile; it goes on afterwards if it ran before.

        Not while vCPUs wait for verdicts: to stop, they would have to go on without one. Nor where somebody else
        follows stops and starts.
        """
        may = self._retry and not int(self._ring.header["halt"][0])
        ran = may and bool(self._qmp.execute("query-status")["running"])
        if ran:
            self.pause()
        try:
            yield
        finally:
            if ran:
                with contextlib.suppress(CtxwatchError):  # it may have ended
                    self._qmp.execute("cont")

    def pause(self) -> None:
        """Stop the guest, letting those vCPUs go that stand in the probe: QEMU waits for all of them.

        Raises GuestFailed when QEMU does not stop; needs a monitor.
        """
        try:
            self._qmp.execute("stop", timeout=_STOP_TIMEOUT, meanwhile=lambda: self._let_go(Release.HALT))
        except CtxwatchError as error:
            raise GuestFailed("the guest does not stop", str(error)) from error

    def _let_go(self, verb: int) -> None:
        """Let those vCPUs go on that stand in the probe, by a :class:`gdbext.sources.ring.Release`."""
        self._ring.release_all(verb)
        self._drain()

    def _drain(self) -> None:
        """Make room in the rings while nobody reads."""
        rows = self._merger.merge(self._ring.take())
        if rows is not None:
            self._ready.append(rows)

    def _retry_halt(self, cpu: int, row: Batch) -> None:
        """QEMU delivers a pending interrupt before it stops: then the handler's first instruction is next, and the
        context is on its stack, not one instruction older. Let the handler return to it, and stop again there."""
        header = self._ring.header
        halt = int(header["halt"][0])
        header["halt"] = 0
        header["catch_rip"], header["catch_rsp"] = row["rip"], row["rsp"]
        header["catch_space"] = space(row)[0]
        try:
            for _ in range(_TRIES):
                if self._rip(cpu) == int(row["rip"][0]):
                    return
                header["catch"] = 1
                self._qmp.execute("cont")
                caught = self._await_catch()
                if caught is None:
                    return
                cpu = caught
                self.pause()
        finally:
            header["catch"] = 0
            header["halt"] = halt

    def _await_catch(self, seconds: float = 5.0) -> int | None:
        """The vCPU that is about to resume the context that was asked for; without a nap, time is interrupts."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._ring.writer_lives():
            caught = np.flatnonzero(self._ring.control["caught"])
            if len(caught):
                self._ring.header["catch"] = 0
                return int(caught[0])
            self._drain()
        return None

    def _rip(self, cpu: int) -> int | None:
        text = self._qmp.execute("human-monitor-command", {"command-line": "info registers", "cpu-index": cpu})
        found = _RIP.search(str(text))
        return int(found[1], 16) if found else None

    @property
    def _qmp(self) -> Monitor:
        assert self._monitor is not None
        return self._monitor

    def _ask(self, command: str, arguments: Mapping[str, object]) -> Any:
        """Run a QMP command, also while somebody else stops the guest, as GDB does for a Ctrl-C: QEMU answers nobody
        before all vCPUs stand, and one may be standing in the probe, waiting for us."""
        deadline = time.monotonic() + _PATIENCE

        def look() -> None:
            if time.monotonic() > deadline:
                # If it is a stop, all were told to by now; if QEMU is merely slow, nobody is to wait for one.
                self._let_go(Release.GO)

        return self._qmp.execute(command, arguments, meanwhile=look)

    def set_halt(self, halt: bool) -> None:
        """Begin or cease to let vCPUs wait at exits that are not identical; those that wait are let go."""
        self._ring.header["halt"] = int(halt)
        if not halt:
            self._ring.release_all(Release.GO)

    def read_memory(self, address: int, length: int, cpu: int = 0) -> bytes:
        """Guest virtual memory as vCPU `cpu` maps it now; raises NotCapable or OSError."""
        if self._monitor is None:
            raise NotCapable("reading memory", "there is no QMP connection", "give QEMU a -qmp socket")
        found = self._memory.by_vcpu(address, length, cpu) if self._open else None
        return found if found is not None else self._memory.by_monitor(address, length, cpu)

    def read_under(self, address: int, length: int, cr3: int) -> bytes:
        """Guest virtual memory as 64-bit code running under `cr3` sees it, wherever the vCPUs are; raises OSError."""
        return self._memory.under(address, length, cr3)

    def set_watch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Watch stores into these half-open ranges of guest virtual addresses, in place of the ones before."""
        if not self._ring.has(Option.WATCH):
            raise NotCapable("watching stores", "the probe was loaded without watch=on")
        merged = _disjoint(ranges)
        if len(merged) > WATCH_RANGES:
            raise UsageError(f"{len(merged)} watched ranges", f"the probe takes {WATCH_RANGES}")
        header = self._ring.header
        spare = (int(header["watch_active"][0]) + 1) & 1
        table = self._ring.watch[spare]
        bits = np.zeros(WATCH_BITS, bool)
        for lo, hi in merged:
            bits[watch_granules(lo, hi)] = True
        table["bits"][:] = np.packbits(bits, bitorder="little")
        table["lo"][: len(merged)] = [lo for lo, _ in merged]
        table["hi"][: len(merged)] = [hi for _, hi in merged]
        header["watch_count"][0, spare] = len(merged)
        header["watch_active"] += 1  # last: the probe then sees the whole table

    def set_tracked(self, variables: Sequence[TrackedVariable]) -> None:
        """Sample these variables at entries and exits; with watch=on their writes are events, too."""
        if len(variables) > TRACKED_SLOTS:
            raise UsageError(f"{len(variables)} tracked variables", f"there is room for {TRACKED_SLOTS}")
        header = self._ring.header
        header["tracked_count"] = 0
        for slot, variable in enumerate(variables):
            header["tracked_addr"][0, slot] = variable.address & 0xFFFF_FFFF_FFFF_FFFF
            header["tracked_size"][0, slot] = variable.size
            header["tracked_flags"][0, slot] = TRACKED_GS if variable.gs else 0
        header["tracked_count"] = len(variables)

    def close(self) -> None:
        """Cease to read; waiting vCPUs go on, and the guest with them. Idempotent."""
        if self._open:
            self._at_close = self.lost, self.counters, self.published
            self._open = False
            self._ring.close()


def _disjoint(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same addresses in ascending ranges that do not touch."""
    merged: list[tuple[int, int]] = []
    for lo, hi in sorted(r for r in ranges if r[0] < r[1]):
        if merged and lo <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(hi, merged[-1][1])
        else:
            merged.append((lo, hi))
    return merged
