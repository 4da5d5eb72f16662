"""A finding: one rule's verdict on one event."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from gdbext.arch.registers import named_for
from gdbext.events.row import Batch, Kind
from gdbext.rules.codes import CODES, ERROR


@dataclass(frozen=True, slots=True)
class Place:
    """Where the context was interrupted: guest virtual RIP, symbol if known, privilege level."""

    rip: int
    symbol: str | None
    cpl: int


@dataclass(frozen=True, slots=True)
class Writer:
    """Who last wrote a slot: the instruction, and of a store that was seen the event number, the CPU and the thread
    whose context was being served there (None where only the code shows it)."""

    rip: int
    symbol: str | None
    event: int | None = None
    cpu: int | None = None
    thread: str | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of a context: its column name, the value at entry (None where nothing tells what it should be) and the
    value at resume."""

    field: str
    expected: int | None
    actual: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step on the way of a context from its save to its resume. ``time``: nanoseconds since it was interrupted,
    None where that is not known; ``pc``: guest virtual address of the instruction."""

    event: int
    time: int | None
    what: str
    pc: int
    symbol: str | None


@dataclass(frozen=True, slots=True)
class CodeLine:
    """One instruction of the guest: its address and its text in Intel syntax."""

    address: int
    text: str


def fields(differences: Iterable[Difference]) -> str | None:
    """The names of the differing fields, comma-separated, or None."""
    return ",".join(d.field for d in differences) or None


def key(code: str, differences: Iterable[Difference], pc: int, handler: int) -> tuple[object, ...]:
    """What findings of one kind have in common: code, fields and path."""
    return code, fields(differences), pc, handler


UNSEEN: Final = ". Who wrote it last was not seen"
"""Behind the cause of a finding about a saved register, until its last writer is known."""
UNKNOWN_SLOT: Final = (
    ". The code of this exit does not show from which slot it was loaded, so that nobody can be named who wrote it last"
)
"""In its place where not even the slot is known."""
LOOK_AT_ALL: Final = "; to see who writes it, run it again through the probe with --stores all"
LOOK_AT_AREA: Final = "; through the probe, who wrote it is told when it comes again, if its save area is known by then"
"""Advice that goes with it: for a frame or a slot on the handler's stack, and for one in an area elsewhere."""


TableRow = tuple[str, int | None, int | None, str | None]
"""One slot of a save area: its name, what it holds, what it should hold, whose value it holds."""


@dataclass(slots=True)
class Finding:
    """What a rule found. Addresses are guest virtual; ``event`` and ``entry`` are event numbers (column ``seq``)."""

    code: str
    event: int
    cpu: int
    vector: int | None
    """None where what is judged has nothing to do with an entry."""
    interrupted: Place
    pc: int
    """The guilty instruction: the exit, the gs: access, the store ..."""
    cause: str
    look_at: str
    severity: str = ERROR
    differences: tuple[Difference, ...] = ()
    match: str = "none"
    """How the ledger entry was chosen: exact, thread, nearest, none."""
    entry: int | None = None
    thread: str | None = None
    slot: str | None = None
    writer: Writer | None = None
    bits: int = 64
    count: int = 1
    row: Batch | None = field(default=None, repr=False)
    """The judged event, as a batch of one."""
    entry_row: Batch | None = field(default=None, repr=False)
    """The ledger entry it was held against, as a batch of one."""
    handler: int = 0
    """First instruction of the handler through which the context was interrupted; 0 if unknown."""
    pc_symbol: str | None = None
    table: tuple[TableRow, ...] = ()
    """A save area as it is beside as it should be (CW402)."""
    rank: int = 0
    """Place among the findings of one event: see :class:`gdbext.rules.draft.Draft`."""
    steps: tuple[Step, ...] = ()
    """From the save of the context to its resume, in order of events."""
    guilty_code: tuple[CodeLine, ...] = ()
    """The instructions around ``pc``."""
    interrupted_code: tuple[CodeLine, ...] = ()
    """The instructions around the interrupted one."""

    @property
    def name(self) -> str:
        """The code's stable name."""
        return CODES[self.code].name

    @property
    def field(self) -> str | None:
        """The differing fields, comma-separated, or None."""
        return fields(self.differences)

    @property
    def switched(self) -> bool:
        """True if the context was not interrupted: its thread switched away of its own accord."""
        return self.entry_row is not None and bool(self.entry_row["kind"][0] == Kind.SWITCH_OUT)

    @property
    def writer_seen(self) -> bool:
        """True if the last writer is one whose store was seen, not one that the code shows."""
        return self.writer is not None and self.writer.event is not None

    def key(self) -> tuple[object, ...]:
        """Equal findings (same code, field and path) have equal keys and are shown once with a count."""
        return key(self.code, self.differences, self.pc, self.handler)

    def name_registers(self) -> None:
        """Name registers as the table does, in the mode of the interrupted context; rules name the event's columns."""
        self.cause, self.look_at = named_for(self.bits, self.cause), named_for(self.bits, self.look_at)
        if self.slot is not None:
            self.slot = named_for(self.bits, self.slot)
        self.table = tuple(
            (named_for(self.bits, name), holds, should, whose and named_for(self.bits, whose))
            for name, holds, should, whose in self.table
        )

    def learn_writer(self, again: Finding, known: str = "") -> None:
        """Take over slot and writer from `again`, an equal finding of a later event, whose cause began with `known`."""
        if self.writer_seen or again.writer is None:
            return
        again.name_registers()
        known = named_for(again.bits, known)
        self.slot, self.writer = again.slot, again.writer
        self.cause = self.cause.replace(UNSEEN, "").replace(UNKNOWN_SLOT, "")
        self.look_at = self.look_at.replace(LOOK_AT_ALL, "").replace(LOOK_AT_AREA, "")
        told = self.cause.split(". ")
        added = [part for part in again.cause.removeprefix(known).split(". ") if part and part not in told]
        if added:
            self.cause += f". At event {again.event}, when it came again: {'. '.join(added)}"
