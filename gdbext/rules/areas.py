"""Save areas under watch: who wrote each slot, and CW401, CW402, CW403.

Areas become known by rows of kind AREA, stores into them by rows of kind STORE, a layout that was learnt from the
running guest's code by rows of kind SLOT (so that a recording replays with it); an entry's own frame may land in an
area too (a kernel that points RSP0, or an idle thread's RSP, into a thread's area). What registers lie where is the
profile's layout; without one only the writers are judged.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from gdbext.arch import flags as rf
from gdbext.arch import vectors
from gdbext.arch.frames import word_size, words_pushed
from gdbext.arch.registers import GPR64
from gdbext.events.columns import Columns
from gdbext.events.row import SLOT_NAMES, Batch, Flag, Kind
from gdbext.ledger.compare import is_user
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.policy import Layout, Policy

MAX_AREAS: Final = 4096
MAX_OFFSET: Final = 1 << 16
"""Bytes; slots beyond it are not believed."""
SAMPLE: Final = 6
"""Slots that a sentence names; the table has all."""
LIKE: Final = 4
"""Slots that must agree before an area is taken for a context's."""
NOWHERE: Final = 0
ANYWHERE: Final = 1
"""In place of an area's address."""
MAX_SHIFT: Final = 8
"""Words by which a context in an area can be moved and still be recognised."""

_JUDGED: Final = (Kind.AREA, Kind.SLOT, Kind.STORE, Kind.ENTRY, Kind.EXIT)


class Write(NamedTuple):
    """One store into a slot: event number, CPU, instruction, value."""

    event: int
    cpu: int
    pc: int
    value: int


class _Event(NamedTuple):
    """The columns of a row that are needed of every store: Python's numbers, for there are very many stores."""

    seq: int
    cpu: int
    pc: int
    addr: int
    value: int
    size: int
    rsp: int
    mode: int
    frame: int


@dataclass(slots=True)
class Area:
    """One save area: where it is and, by byte offset, the stores of the batch at hand and the last one before it."""

    start: int
    size: int
    writes: dict[int, list[Write]]

    def last(self, offset: int, before: int) -> Write | None:
        """The last store at byte `offset` before event `before`."""
        return next((w for w in reversed(self.writes.get(offset, [])) if w.event < before), None)


class AreaJudge:
    """Follows the stores into every known save area."""

    def __init__(self, policy: Policy) -> None:
        self._layout = policy.layout
        self._writers = policy.writers
        self._learnt: dict[str, int] = {}
        self._named: dict[int, str | None] = {}
        """The layout's slot at each byte offset asked for."""
        self._starts: list[int] = []
        self._areas: dict[int, Area] = {}
        self._touched: set[tuple[int, int]] = set()
        self._saving: dict[int, int] = {}

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge a batch in order of ``seq``; it costs nothing while no area is known."""
        kind = batch["kind"]
        if not self._areas and not ((kind == Kind.AREA) | (kind == Kind.SLOT)).any():
            return []
        self._trim()
        judged: list[Judged] = []
        chosen = np.flatnonzero(np.isin(kind, _JUDGED))
        columns = [batch[name][chosen].tolist() for name in _Event._fields]
        events = map(_Event._make, zip(*columns, strict=True))
        for index, which, event in zip(chosen.tolist(), kind[chosen].tolist(), events, strict=True):
            if which == Kind.STORE:
                judged += [(draft, batch.row(index), None) for draft in self._store(event)]
            elif which == Kind.ENTRY:
                if self._at(event.frame) is not None:
                    row = batch.row(index)
                    judged += [(draft, row, None) for draft in self._entry(row)]
                self._enter(event)
            elif which == Kind.EXIT:
                self._saving.pop(event.cpu, None)
            elif which == Kind.AREA:
                self._know(event.addr, event.value)
            else:
                self._learn(event)
        return judged

    @property
    def known(self) -> bool:
        """True once there are areas and a layout for them."""
        return bool(self._areas) and self._layout is not None

    def area_of(self, context: Batch, before: int) -> Area | None:
        """The area that holds `context` (a batch of one) as its slots were written before event `before`: the one on
        which most registers agree, its RIP or RSP and LIKE in all at least; None if there is none."""
        layout = self._layout
        if layout is None:
            return None
        names = [name for name in (*GPR64, "rip", "rflags") if name in layout.slots]
        best, most = None, (0, 0)
        for area in self._areas.values():
            written = {name: area.last(layout.slots[name], before) for name in names}
            same = {name: w.event for name, w in written.items() if w is not None and w.value == int(context[name][0])}
            score = len(same), max(same.values(), default=0)
            if len(same) >= LIKE and {"rip", "rsp"} & same.keys() and score > most:
                best, most = area, score
        return best

    def last_write(self, area: Area, field: str, before: int) -> Write | None:
        """The last store into the slot of `field` in `area` before event `before`, None if none was seen."""
        if self._layout is None or field not in self._layout.slots:
            return None
        return area.last(self._layout.slots[field], before)

    def slot_number(self, field: str) -> int | None:
        """The slot of `field` counted in words from the area's start."""
        if self._layout is None or field not in self._layout.slots:
            return None
        return self._layout.slots[field] // self._layout.word

    def _trim(self) -> None:
        """Keep only the last store of each slot written in the batch before."""
        for area, offset in self._touched:
            del self._areas[area].writes[offset][:-1]
        self._touched.clear()

    def _learn(self, event: _Event) -> None:
        """One more slot of a layout that was learnt while the guest ran; the profile's own, if any, makes room."""
        number, offset, word = event.value, event.addr, event.size
        if number >= len(SLOT_NAMES) or word not in (4, 8) or offset > MAX_OFFSET:
            return  # a damaged recording
        self._learnt[SLOT_NAMES[number]] = offset
        self._layout = Layout(dict(self._learnt), max(self._learnt.values()) + word, word)
        self._named.clear()

    def _know(self, start: int, size: int) -> None:
        if start not in self._areas and len(self._areas) < MAX_AREAS and size > 0:
            self._areas[start] = Area(start, size, {})
            insort(self._starts, start)

    def _at(self, address: int) -> Area | None:
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        area = self._areas[self._starts[index]]
        return area if address < area.start + area.size else None

    def _name(self, offset: int) -> str | None:
        """The register kept at byte `offset` of an area, as far as a layout says."""
        if offset not in self._named:
            self._named[offset] = self._layout.slot_at(offset) if self._layout is not None else None
        return self._named[offset]

    def _store(self, event: _Event) -> list[Draft]:
        area = self._at(event.addr)
        if area is None:
            return []
        offset = event.addr - area.start
        drafts = []
        pushed = event.addr == (event.rsp - event.size) & (2**64 - 1 if event.mode == 64 else 2**32 - 1)
        if self._writers is not None:
            if not any(start <= event.pc <= end for start, end in self._writers):
                drafts.append(self._foreign(event, area, offset, "it is not among the profile's writers"))
        elif pushed and self._foreign_stack(event.cpu, area):
            why = "it is a push: the stack of the code that runs here reaches into the area"
            drafts.append(self._foreign(event, area, offset, why))
        name = self._name(offset)
        if name is not None and self._layout is not None and event.size == self._layout.word:
            why = implausible(name, event.value)
            if why:
                drafts.append(self._implausible(event, name, why))
        area.writes.setdefault(offset, []).append(Write(event.seq, event.cpu, event.pc, event.value))
        self._touched.add((area.start, offset))
        return drafts

    def _enter(self, event: _Event) -> None:
        """Note in which area the handler that begins may push: where the CPU put its frame; after a system call, which
        pushes none, where it pushes first."""
        area = self._at(event.frame)
        self._saving[event.cpu] = area.start if area is not None else NOWHERE if event.frame else ANYWHERE

    def _foreign_stack(self, cpu: int, area: Area) -> bool:
        """True unless a handler runs whose own save this area is (its pushes are the save)."""
        if self._saving.get(cpu, NOWHERE) == ANYWHERE:
            self._saving[cpu] = area.start
        return self._saving.get(cpu, NOWHERE) != area.start

    def _entry(self, row: Batch) -> list[Draft]:
        """An entry whose frame lands in an area, but not on the slots that are meant for it."""
        frame = int(row["frame"][0])
        area = self._at(frame) if frame and not row["flags"][0] & Flag.UNREADABLE else None
        layout = self._layout
        if area is None or layout is None or "rip" not in layout.slots:
            return []
        distance = frame - area.start - layout.slots["rip"]
        shift = distance // layout.word
        if distance == 0 or distance % layout.word or abs(shift) > MAX_SHIFT:
            return []
        return [_shifted(row, layout, shift, area, self._last_push(area, frame, row))]

    def _last_push(self, area: Area, frame: int, row: Batch) -> Write | None:
        """The store just above the frame: what moved RSP before the CPU pushed."""
        size = word_size(int(row["mode"][0]))
        words = words_pushed(int(row["mode"][0]), 3 if bool(is_user(row)[0]) else 0, 0)
        return area.last(frame + words * size - area.start, int(row["seq"][0]))

    def _foreign(self, event: _Event, area: Area, offset: int, why: str) -> Draft:
        name = self._name(offset)
        slot = f"slot {name}" if name else f"byte {offset}"
        pc, value = event.pc, event.value
        cause = f"{slot} of the save area at {area.start:#x} was written with {value:#x} by code at {pc:#x}: {why}"
        look = "why this code's stack lies there: a stack too small, an idle thread without one, a stray pointer"
        return Draft("CW401", cause, look, (Difference(name or "area", 0, value),), slot=slot, writer=pc)

    def _implausible(self, event: _Event, name: str, why: str) -> Draft:
        pc, value = event.pc, event.value
        cause = f"slot {name} was given {value:#x} by code at {pc:#x}, which {name.upper()} cannot hold: {why}"
        look = "what the save path copies there: one word too many, or from the wrong place in the frame"
        return Draft("CW403", cause, look, (Difference(name, 0, value),), slot=f"slot {name}", writer=pc)


def implausible(name: str, value: int) -> str:
    """Why `value` cannot be what a register `name` holds; "" if it can. Zero is what cleared memory holds.

    A RIP that is not canonical is not judged here: user code may ask for one, and the return to it is (CW601).
    """
    if value == 0:
        return ""
    if name in ("cs", "ss", "ds", "es", "fs", "gs") and value > 0xFFFF:
        return "a selector has 16 bits"
    if name == "rflags" and (value & rf.RESERVED or not value & rf.ALWAYS_ONE):
        return "reserved bits of RFLAGS are not as they always are"
    return ""


def _shifted(row: Batch, layout: Layout, shift: int, area: Area, push: Write | None) -> Draft:
    """CW402: each slot will hold what belongs `shift` words away."""
    by_offset = {offset: name for name, offset in layout.slots.items()}
    table = []
    for name, offset in sorted(layout.slots.items(), key=lambda item: item[1]):
        belongs = by_offset.get(offset - shift * layout.word)
        own, held = _value(row, name), _value(row, belongs) if belongs else None
        table.append((name, held, own, belongs))
    words = f"{abs(shift)} word{'s' * (abs(shift) > 1)} {'down' if shift < 0 else 'up'}"
    moved = [f"{name} will hold {belongs}'s" for name, _, _, belongs in table if belongs]
    sample = ", ".join(moved[-SAMPLE:])
    what = vectors.name(int(row["vector"][0]))
    cause = (
        f"the frame of {what} landed in the save area at {area.start:#x}, but {words} from its slots: "
        f"the context is saved moved ({sample})"
    )
    if push is not None:
        cause += f"; RSP was moved by the push at {push.pc:#x}"
    look = "what moved RSP inside the area before the interrupt: code that runs on this 'stack' must not push"
    expected = area.start + layout.slots["rip"]
    found = (Difference("frame", expected, int(row["frame"][0])),)
    writer = push.pc if push is not None else None
    return Draft("CW402", cause, look, found, slot="slot rip", writer=writer, table=tuple(table))


def _value(row: Batch, name: str) -> int | None:
    if name == "error":
        return int(row["error"][0])
    names = row.dtype.names or ()
    return int(row[name][0]) if name in names else None
