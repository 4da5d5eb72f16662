"""Walking a recording: a cursor that stands at one event, and the machine as it was known to be at that moment.

At an event its instruction is about to run, as in a debugger: what it does is not done yet.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from gdbext.arch import flags as rf
from gdbext.arch import vectors
from gdbext.arch.registers import GPR32, GPR64, display_name
from gdbext.errors import NotCapable, RecordingError, UsageError
from gdbext.events.columns import Columns, Rows
from gdbext.events.held import REGISTERS, lacking
from gdbext.events.row import SLOT_NAMES, Batch, Flag, How, Kind, concat
from gdbext.recording.header import Header
from gdbext.recording.mark import Unit
from gdbext.recording.reader import Recording
from gdbext.recording.replay import Replay
from gdbext.rules.finding import Finding
from gdbext.rules.gslog import GsLog
from gdbext.rules.parity import ParityCount

_CACHED: Final = 4
"""Units kept decoded."""
_SAVES: Final = (Kind.AREA, Kind.SLOT, Kind.STORE)


@dataclass(frozen=True, slots=True)
class _Unit:
    """Batches that were judged together: how many events, from `first` to `last`, and what was counted before."""

    rows: int
    first: int
    last: int
    counts: tuple[int, int, int, int]
    parity: ParityCount


@dataclass(frozen=True, slots=True)
class Register:
    """A register then. ``value`` is None where it was not captured, and ``note`` says why; else ``note`` tells what is
    in it (flags by name), or nothing."""

    name: str
    value: int | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Slot:
    """A word of a save area then. ``name``: the register it is for, by the profile's layout, or "" where that names
    none; ``value``: None while nothing was stored; ``event`` and ``pc``: of the last store."""

    offset: int
    name: str
    value: int | None
    event: int = 0
    pc: int = 0


@dataclass(frozen=True, slots=True)
class Area:
    """A save area then: guest virtual address, bytes, its words."""

    start: int
    size: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """The state as of the event at hand. ``counts``: entries, exits, system calls and swapgs before it; ``parity`` by
    CPU: rules.parity's USER, KERNEL or UNKNOWN; ``seconds``: since the first event; ``findings``: found up to it."""

    event: int
    cpu: int
    seconds: float
    counts: tuple[int, int, int, int]
    parity: dict[int, int]
    findings: list[Finding]


class Walk:
    """A recording that is walked event by event, standing at its first one.

    progress: called with the number of events read so far while the recording is gone through once, by the rules,
    when it is opened.  Raises RecordingError where it is no recording, or holds no event.
    """

    def __init__(self, path: Path, progress: Callable[[int], None] | None = None) -> None:
        self.path = path
        self._recording = Recording(path)
        self._units: list[_Unit] = []
        self._cache: dict[int, Batch] = {}
        self._at, self._row = 0, 0
        self._cpus: dict[int, int] = {}
        try:
            self.findings = self._survey(progress)
            self.flaw = self._recording.flaw
            """Why the recording ends before the run did, None for a whole one."""
            if not self._units:
                raise RecordingError(f"{path} holds no events", self.flaw or "nothing was watched")
            self._places = self._where()
        except BaseException:
            self._recording.close()
            raise
        self._start = int(self._unit(0)["time"][0])

    @property
    def header(self) -> Header:
        """What the recording says of itself."""
        return self._recording.header

    @property
    def first(self) -> int:
        """The first event's number."""
        return self._units[0].first

    @property
    def last(self) -> int:
        """The last event's number."""
        return self._units[-1].last

    @property
    def row(self) -> Batch:
        """The event at hand, as a batch of one."""
        return self._unit(self._at)[self._row : self._row + 1]

    @property
    def event(self) -> int:
        """The number of the event at hand."""
        return int(self.row["seq"][0])

    # Moving

    def goto(self, event: int) -> None:
        """Stand at `event`. Raises UsageError where there is none of that number, naming the nearest."""
        if not self.first <= event <= self.last:
            raise UsageError(
                f"there is no event {event} in this recording", todo=f"they are {self.first} to {self.last}"
            )
        unit = next(n for n, unit in enumerate(self._units) if event <= unit.last)
        seq = self._unit(unit)["seq"]
        row = int(np.abs(seq.astype(np.int64) - event).argmin())
        found = int(seq[row])
        if found != event:
            raise UsageError(f"there is no event {event} in this recording", todo=f"the nearest is {found}")
        self._at, self._row = unit, row

    def step(self, count: int) -> None:
        """Go `count` events on, or back where it is negative. Raises UsageError, having moved nowhere, at an end."""
        at, row = self._at, self._row + count
        while row < 0 and at > 0:
            at -= 1
            row += len(self._unit(at))
        while row >= len(self._unit(at)) and at + 1 < len(self._units):
            row -= len(self._unit(at))
            at += 1
        if not 0 <= row < len(self._unit(at)):
            raise UsageError(f"this is the {'first' if count < 0 else 'last'} event" if abs(count) == 1 else
                             f"there are not so many events {'before' if count < 0 else 'after'} this one")  # fmt: skip
        self._at, self._row = at, row

    def next_finding(self) -> Finding:
        """Go to the next event with a finding and return that. Raises UsageError where there is none."""
        here = self.event
        return self._go(next((found for found in self.findings if found.event > here), None), "after")

    def prev_finding(self) -> Finding:
        """Go to the event with a finding before this one and return that. Raises UsageError where there is none."""
        here = self.event
        return self._go(next((found for found in reversed(self.findings) if found.event < here), None), "before")

    def _go(self, found: Finding | None, where: str) -> Finding:
        if found is None:
            total = len(self.findings)
            raise UsageError(f"there is no finding {where} event {self.event}", f"the recording holds {total}")
        self.goto(found.event)
        return found

    # What was so then

    def moment(self) -> Moment:
        """The state as of the event at hand."""
        unit, rows = self._units[self._at], self._unit(self._at)
        before = _counted(rows[: self._row])
        here = self.event
        return Moment(
            event=here,
            cpu=int(self.row["cpu"][0]),
            seconds=(int(self.row["time"][0]) - self._start) / 1e9,
            counts=tuple(a + b for a, b in zip(unit.counts, before, strict=True)),  # type: ignore[arg-type]
            parity=self._parity(),
            findings=[found for found in self.findings if found.event <= here],
        )

    def whose(self) -> str:
        """Whose registers :meth:`registers` gives at the event at hand."""
        kind = int(self.row["kind"][0])
        if kind == Kind.ENTRY:
            return "the context that was interrupted"
        return "the context that is about to be resumed" if kind == Kind.EXIT else "the running code"

    def describe(self) -> str:
        """The event at hand in one line."""
        row = self.row
        kind, how = int(row["kind"][0]), int(row["how"][0])
        what = Kind.NAMES.get(kind, "?")
        if kind == Kind.ENTRY:
            what += f" by {vectors.name(int(row['vector'][0]))}"
        elif how:
            what += f" by {How.name(how)}"
        identical = ", identical" if kind == Kind.EXIT and row["flags"][0] & Flag.IDENTICAL else ""
        return f"event {self.event}, CPU {int(row['cpu'][0])}: {what} at {self.named(int(row['pc'][0]))}{identical}"

    def registers(self) -> list[Register]:
        """The registers then; of which context, :meth:`whose` tells."""
        row = self.row
        bits = 32 if row["flags"][0] & Flag.LINEAR32 or row["mode"][0] in (16, 32) else 64
        names = REGISTERS if bits == 64 else (*REGISTERS[: len(GPR32)], *REGISTERS[len(GPR64) :])
        missing = lacking(row)
        return [_register(name, int(row[name][0]), missing.get(name), bits) for name in names]

    def areas(self) -> list[Area]:
        """The save areas known then, by the stores seen until then; it goes through the recording up to the event."""
        here = self.event
        sizes: dict[int, int] = {}
        stores: dict[int, tuple[int, int, int]] = {}
        layout = self.header.policy.layout
        names = {offset: name for name, offset in layout.slots.items()} if layout is not None else {}
        for index in range(self._at + 1):
            rows = self._unit(index)
            for row in rows[np.isin(rows["kind"], _SAVES) & (rows["seq"] < here)]:
                if row["kind"] == Kind.AREA:
                    sizes[int(row["addr"])] = int(row["value"])
                elif row["kind"] == Kind.SLOT:
                    names[int(row["addr"])] = _slot_name(int(row["value"]))
                else:
                    stores[int(row["addr"])] = int(row["value"]), int(row["seq"]), int(row["pc"])
        return [Area(start, size, _slots(start, size, names, stores)) for start, size in sorted(sizes.items())]

    def gs(self) -> GsLog:
        """What had happened to the GS bases until then; it goes through the recording up to the event."""
        log = GsLog()
        here = self.event
        for index in range(self._at + 1):
            rows = self._unit(index)
            before = rows[rows["seq"] < here]
            if len(before):
                log.put(before)
        return log

    def memory(self, address: int, length: int) -> bytes:
        """Guest virtual memory as it was captured for the rules; fewer bytes where the rest was not. Raises NotCapable
        where nothing was."""
        try:
            return self._recording.guest.read(address, length)
        except OSError as error:
            raise NotCapable(
                f"memory at {address:#x} is not in the recording",
                "only what the rules asked for was captured",
                "watch the guest itself to read more",
            ) from error

    def symbol(self, address: int) -> str | None:
        """The name of a guest virtual address, as far as names were captured."""
        return self._recording.guest.symbol(address)

    def address(self, name: str) -> int | None:
        """The address of a function of which some place was named while recording, or None."""
        return self._recording.guest.address(name)

    def functions(self) -> list[str]:
        """The functions of which some place was named while recording."""
        return self._recording.guest.functions()

    def named(self, address: int) -> str:
        """``0xffffffff801029f5 <restore_context+0x86>``."""
        name = self.symbol(address)
        return f"{address:#x} <{name}>" if name else f"{address:#x}"

    def close(self) -> None:
        """Close the file; idempotent."""
        self._recording.close()

    # Reading

    def _survey(self, progress: Callable[[int], None] | None) -> list[Finding]:
        """Go through it once: find the findings, and note where each batch lies."""
        replay = Replay(self._recording)
        parity = ParityCount()
        counts = (0, 0, 0, 0)
        events = 0
        for rows, _ in replay.steps():
            if not len(rows):
                continue
            seq = rows["seq"]
            self._units.append(_Unit(len(rows), int(seq.min()), int(seq.max()), counts, copy.deepcopy(parity)))
            parity.count(rows)
            for cpu in np.unique(rows["cpu"]):
                self._cpus.setdefault(int(cpu), int(rows["seq"][rows["cpu"] == cpu][0]))
            counts = tuple(a + b for a, b in zip(counts, _counted(rows), strict=True))  # type: ignore[assignment]
            events += len(rows)
            if progress is not None:
                progress(events)
        return replay.engine.findings

    def _where(self) -> list[list[Unit]]:
        """The batches of the file that each unit is made of; what lies behind a flaw was not judged and is in none."""
        found = iter(self._recording.index())
        places = []
        for unit in self._units:
            places.append([next(found)])
            while sum(batch.mark.rows for batch in places[-1]) < unit.rows:
                places[-1].append(next(found))
        return places

    def _unit(self, index: int) -> Batch:
        """The rows of a unit."""
        if index not in self._cache:
            while len(self._cache) >= _CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[index] = concat([self._recording.batch(place) for place in self._places[index]])
        return self._cache[index]

    def _parity(self) -> dict[int, int]:
        unit, rows = self._units[self._at], self._unit(self._at)
        count = copy.deepcopy(unit.parity)
        if self._row:
            count.count(Columns(rows[: self._row]))
        here = self.event
        return {cpu: count.after(cpu) for cpu, first in sorted(self._cpus.items()) if first <= here}


def _counted(rows: Rows) -> tuple[int, int, int, int]:
    entry = rows["kind"] == Kind.ENTRY
    call = np.isin(rows["how"], (How.SYSCALL, How.SYSENTER, How.SOFT))
    swaps, exits = rows["kind"] == Kind.SWAPGS, rows["kind"] == Kind.EXIT
    return int(entry.sum()), int(exits.sum()), int((entry & call).sum()), int(swaps.sum())


def _register(name: str, value: int, missing: str | None, bits: int) -> Register:
    shown = display_name(name, bits)
    if missing is not None:
        return Register(shown, None, missing)
    note = rf.describe(value) if name == "rflags" else f"CPL {value & 3}" if name == "cs" else ""
    return Register(shown, value, note)


def _slot_name(number: int) -> str:
    return SLOT_NAMES[number] if number < len(SLOT_NAMES) else ""


def _slots(start: int, size: int, names: dict[int, str], stores: dict[int, tuple[int, int, int]]) -> tuple[Slot, ...]:
    offsets = set(names) | {address - start for address in stores if start <= address < start + size}
    return tuple(
        Slot(offset, names.get(offset, ""), *stores.get(start + offset, (None, 0, 0)))
        for offset in sorted(offsets)
        if 0 <= offset < size
    )
