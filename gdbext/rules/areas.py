"""Save areas under watch: who wrote each slot, and CW401, CW402, CW403.

Areas become known by rows of kind AREA, stores into them by rows of kind STORE, a layout that was learnt from the
running guest's code by rows of kind SLOT (so that a recording replays with it); an entry's own frame may land in an
area too (a kernel that points RSP0, or an idle thread's RSP, into a thread's area). What registers lie where is the
profile's layout; without one only the writers are judged.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from gdbext.arch import flags as rf
from gdbext.arch import vectors
from gdbext.arch.frames import word_size, words_pushed
from gdbext.arch.registers import GPR64, SEGMENTS
from gdbext.events.columns import Columns, Indices
from gdbext.events.row import SLOT_NAMES, Batch, Flag, Kind
from gdbext.ledger.compare import U64, Bools, is_user
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.laststores import LastStores, Write
from gdbext.rules.policy import Layout, Policy
from gdbext.rules.pushes import NOWHERE, Pushes

MAX_AREAS: Final = 4096
MAX_OFFSET: Final = 1 << 16
"""Bytes; slots beyond it are not believed."""
SAMPLE: Final = 6
"""Slots that a sentence names; the table has all."""
LIKE: Final = 4
"""Slots that must agree before an area is taken for a context's."""
MAX_SHIFT: Final = 8
"""Words by which a context in an area can be moved and still be recognised."""


@dataclass(frozen=True, slots=True)
class Area:
    """One save area: where it is (guest virtual), and its bytes."""

    start: int
    size: int


class AreaJudge:
    """Follows the stores into every known save area."""

    def __init__(self, policy: Policy) -> None:
        self._layout = policy.layout
        self._writers = policy.writers
        self._learnt: dict[str, int] = {}
        self._since: int | None = None
        """The event from which on there were areas and a layout."""
        self._starts: list[int] = []
        self._areas: dict[int, Area] = {}
        self._asked: set[str] = set()
        """Fields whose slots a finding is about."""
        self._stores = LastStores()
        self._pushes = Pushes()

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge a batch in order of ``seq``; it costs nothing while no area is known."""
        kind = batch["kind"]
        told = np.flatnonzero((kind == Kind.AREA) | (kind == Kind.SLOT)).tolist()
        if not self._areas and not told:
            return []
        self._stores.begin(batch)
        judged: list[Judged] = []
        start = 0
        for at in told:
            judged += self._stretch(batch, start, at)
            number, value = int(batch["addr"][at]), int(batch["value"][at])
            if kind[at] == Kind.AREA:
                self._know(number, value)
            else:
                self._learn(value, number, int(batch["size"][at]))
            if self._since is None and self._areas and self._layout is not None:
                self._since = int(batch["seq"][at])
            start = at + 1
        return judged + self._stretch(batch, start, len(batch))

    def known(self, event: int) -> bool:
        """True once, before `event`, there were areas and a layout for them."""
        return self._since is not None and self._since < event

    def area_of(self, context: Batch, before: int) -> Area | None:
        """The area that holds `context` (a batch of one) as its slots were written before event `before`: the one on
        which most registers agree, its RIP or RSP and LIKE in all at least, or its RIP alone where only some slots are
        watched and that was written since it was interrupted; None if there is none."""
        layout = self._layout
        if layout is None:
            return None
        names = [name for name in (*GPR64, "rip", "rflags") if name in layout.slots]
        best, most = None, (0, 0)
        for area in self._areas.values():
            written = {name: self._stores.last(area.start + layout.slots[name], before) for name in names}
            same = {name: w.event for name, w in written.items() if w is not None and w.value == int(context[name][0])}
            score = len(same), max(same.values(), default=0)
            enough = len(same) >= LIKE or (bool(self._asked) and same.get("rip", 0) >= int(context["seq"][0]))
            if enough and {"rip", "rsp"} & same.keys() and score > most:
                best, most = area, score
        return best

    def ask(self, field: str) -> None:
        """A finding is about `field`, and nobody was seen who stores it: have the stores into its slots told."""
        if self._layout is not None and field in self._layout.slots:
            self._asked |= {field, "rip"} & self._layout.slots.keys()

    @property
    def wanted(self) -> dict[int, int]:
        """Where stores are asked for: first byte of each slot, and the one behind it. RIP's tell whose save it is."""
        layout = self._layout
        if layout is None:
            return {}
        slots = [layout.slots[field] for field in sorted(self._asked)]
        return {start + slot: start + slot + layout.word for start in self._areas for slot in slots}

    def last_write(self, area: Area, field: str, before: int) -> Write | None:
        """The last store into the slot of `field` in `area` before event `before`, None if none was seen."""
        if self._layout is None or field not in self._layout.slots:
            return None
        return self._stores.last(area.start + self._layout.slots[field], before)

    def slot_number(self, field: str) -> int | None:
        """The slot of `field` counted in words from the area's start."""
        if self._layout is None or field not in self._layout.slots:
            return None
        return self._layout.slots[field] // self._layout.word

    def _learn(self, number: int, offset: int, word: int) -> None:
        """One more slot of a layout that was learnt while the guest ran; the profile's own, if any, makes room."""
        if number >= len(SLOT_NAMES) or word not in (4, 8) or offset > MAX_OFFSET:
            return  # a damaged recording
        self._learnt[SLOT_NAMES[number]] = offset
        self._layout = Layout(dict(self._learnt), max(self._learnt.values()) + word, word)

    def _know(self, start: int, size: int) -> None:
        if start not in self._areas and len(self._areas) < MAX_AREAS and size > 0:
            self._areas[start] = Area(start, size)
            insort(self._starts, start)

    def _at(self, address: int) -> Area | None:
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        area = self._areas[self._starts[index]]
        return area if address < area.start + area.size else None

    def _stretch(self, batch: Columns, start: int, end: int) -> list[Judged]:
        """Judge the rows from `start` to `end`, in which no area and no slot becomes known."""
        if start == end:
            return []
        kind = batch["kind"][start:end]
        stores = start + np.flatnonzero((kind == Kind.STORE) & (batch["match"][start:end] == 0))  # those not told late
        owner = self._owners(batch["addr"][stores])
        stores, owner = stores[owner != NOWHERE], owner[owner != NOWHERE]
        self._stores.note(stores)
        entries = start + np.flatnonzero(kind == Kind.ENTRY)
        landed = entries[self._owners(batch["frame"][entries]) != NOWHERE]
        turns = start + np.flatnonzero((kind == Kind.ENTRY) | (kind == Kind.EXIT))
        foreign = self._pushes.foreign(batch, turns, self._owners(batch["frame"][turns]), stores, owner)
        if self._writers is not None:
            foreign = ~_within(batch["pc"][stores], self._writers)
        else:
            foreign &= ~self._not_resumed(batch["addr"][stores] - owner)
        doubtful = foreign | self._doubtful(batch, stores, owner)
        found: list[tuple[int, Draft]] = []
        for at in np.flatnonzero(doubtful).tolist():
            area, index = self._areas[int(owner[at])], int(stores[at])
            found += [(index, draft) for draft in self._store(batch.row(index), area, bool(foreign[at]))]
        found += [(at, draft) for at in landed.tolist() for draft in self._entry(batch.row(at))]
        found.sort(key=lambda item: item[0])
        return [(draft, batch.row(at), None) for at, draft in found]

    def _owners(self, addresses: U64) -> U64:
        """The start of the area in which each address lies, or NOWHERE."""
        if not self._starts:
            return np.full(len(addresses), NOWHERE, np.uint64)
        starts = np.array(self._starts, np.uint64)
        sizes = np.array([self._areas[start].size for start in self._starts], np.uint64)
        place = np.searchsorted(starts, addresses, "right") - 1
        inside = (place >= 0) & (addresses - starts[place] < sizes[place])
        return np.where(inside, starts[place], np.uint64(NOWHERE))

    def _not_resumed(self, offsets: U64) -> Bools:
        """True for each offset into an area at which nothing lies that a resume loads: the slot of an error code, in a
        learnt area also words among the slots that are none. An exit path that runs on its save area may push there.
        Behind the slots lies the image of FXSAVE."""
        layout = self._layout
        if layout is None:
            return np.zeros(len(offsets), bool)
        places = {name: (at, at + layout.word - 1) for name, at in layout.slots.items()}
        error = places.pop("error", None)
        if self._learnt:
            return ~_within(offsets, list(places.values())) & (offsets < layout.size)
        return _within(offsets, [error] if error else [])

    def _doubtful(self, batch: Columns, stores: Indices, owner: U64) -> Bools:
        """True for each store into a slot that its register may not hold; :func:`implausible` has the last word."""
        layout = self._layout
        doubtful = np.zeros(len(stores), bool)
        if layout is None:
            return doubtful
        offset, value = batch["addr"][stores] - owner, batch["value"][stores]
        odd_flags = (value & np.uint64(rf.RESERVED) != 0) | (value & np.uint64(rf.ALWAYS_ONE) == 0)
        odd_selector = value > np.uint64(0xFFFF)
        for name in (*SEGMENTS, "rflags"):
            if name in layout.slots:
                start, end = (np.uint64(layout.slots[name] + by) for by in (0, layout.word))
                odd = odd_flags if name == "rflags" else odd_selector
                doubtful |= (offset >= start) & (offset < end) & (value != 0) & odd
        return doubtful

    def _store(self, row: Batch, area: Area, foreign: bool) -> list[Draft]:
        """What is wrong with a store into `area`; `foreign`: who made it is."""
        offset, value = int(row["addr"][0]) - area.start, int(row["value"][0])
        drafts = []
        if foreign and self._writers is not None:
            drafts.append(self._foreign(row, area, offset, "it is not among the profile's writers"))
        elif foreign:
            why = "it is a push: the stack of the code that runs here reaches into the area"
            drafts.append(self._foreign(row, area, offset, why))
        name = self._layout.slot_at(offset) if self._layout else None
        if name is not None and self._layout is not None and row["size"][0] == self._layout.word:
            why = implausible(name, value)
            if why:
                drafts.append(self._implausible(row, name, value, why))
        return drafts

    def _entry(self, row: Batch) -> list[Draft]:
        """An entry whose frame lands in an area, but not on the slots that are meant for it."""
        frame = int(row["frame"][0])
        area = self._at(frame) if not row["flags"][0] & Flag.UNREADABLE else None
        layout = self._layout
        if area is None or layout is None or "rip" not in layout.slots:
            return []
        distance = frame - area.start - layout.slots["rip"]
        shift = distance // layout.word
        if distance == 0 or distance % layout.word or abs(shift) > MAX_SHIFT:
            return []
        return [_shifted(row, layout, shift, area, self._last_push(area, frame, row))]

    def _last_push(self, area: Area, frame: int, row: Batch) -> Write | None:
        """The store at the top of the interrupted stack: what moved RSP before the CPU aligned it and pushed."""
        if bool(is_user(row)[0]):
            mode = int(row["mode"][0])
            top = frame + words_pushed(mode, 3, 0) * word_size(mode)
        else:
            top = int(row["rsp"][0])
        return self._stores.last(top, int(row["seq"][0]))

    def _foreign(self, row: Batch, area: Area, offset: int, why: str) -> Draft:
        name = self._layout.slot_at(offset) if self._layout else None
        slot = f"slot {name}" if name else f"byte {offset}"
        pc, value = int(row["pc"][0]), int(row["value"][0])
        cause = f"{slot} of the save area at {area.start:#x} was written with {value:#x} by code at {pc:#x}: {why}"
        look = "why this code's stack lies there: a stack too small, an idle thread without one, a stray pointer"
        return Draft("CW401", cause, look, (Difference(name or "area", None, value),), slot=slot, writer=Write.of(row))

    def _implausible(self, row: Batch, name: str, value: int, why: str) -> Draft:
        pc = int(row["pc"][0])
        cause = f"slot {name} was given {value:#x} by code at {pc:#x}, which {name.upper()} cannot hold: {why}"
        look = "what the save path copies there: one word too many, or from the wrong place in the frame"
        return Draft("CW403", cause, look, (Difference(name, None, value),), slot=f"slot {name}", writer=Write.of(row))


def _within(places: U64, ranges: Sequence[tuple[int, int]]) -> Bools:
    """True for each place that lies in one of the ranges, ends included."""
    inside = np.zeros(len(places), bool)
    for start, end in ranges:
        inside |= (places >= np.uint64(start)) & (places <= np.uint64(end))
    return inside


def implausible(name: str, value: int) -> str:
    """Why `value` cannot be what a register `name` holds; "" if it can. Zero is what cleared memory holds.

    A RIP that is not canonical is not judged here: user code may ask for one, and the return to it is (CW601).
    """
    if value == 0:
        return ""
    if name in SEGMENTS and value > 0xFFFF:
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
    return Draft("CW402", cause, look, found, slot="slot rip", writer=push, table=tuple(table))


def _value(row: Batch, name: str) -> int | None:
    if name == "error":
        return int(row["error"][0])
    names = row.dtype.names or ()
    return int(row[name][0]) if name in names else None
