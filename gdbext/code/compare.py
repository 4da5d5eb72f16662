"""What an entry path's stores and an exit path's loads say about one another, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gdbext.arch.frames import FRAME_FIELDS
from gdbext.arch.registers import display_name
from gdbext.code.savemap import AreaKey, RestoreMap, SaveMap, callee_saved, general
from gdbext.code.values import FRAME, STACK, STACKS, Context, Place, Result, Start, Value
from gdbext.code.walk import End

AREA_BYTES: Final = 4096
"""No save area is larger: a place further behind its beginning is not counted as one of its slots."""


class Kind(Enum):
    """What is wrong, or worth knowing."""

    NEVER_STORED = "never-stored"  # the exit loads it from a slot in which this path never puts it
    WRONG_SLOT = "wrong-slot"  # stored in one slot, loaded from another
    EXCHANGED = "exchanged"  # two registers come back in one another's place
    CLASH = "slot-clash"  # two registers share one slot
    REPLACED = "replaced"  # the entry path stores the handler's own value where the exit loads the interrupted one
    SHIFTED = "frame-shifted"  # RSP is not on the CPU's frame at the iret
    NOT_RESTORED = "not-restored"  # stored but not loaded, and not left alone by the code in between
    LOST = "lost"  # neither stored nor kept
    COMPILER = "compiler"  # neither stored nor loaded: compiled code keeps it (no fault)
    ELSEWHERE = "elsewhere"  # loaded, but stored by code that this path does not show (no fault)


FAULTS: Final = frozenset(Kind) - {Kind.COMPILER, Kind.ELSEWHERE}


@dataclass(frozen=True, slots=True)
class Statement:
    """One sentence about `fields`. ``word``: the slot that the exit loads from (else where the entry stores), as index
    in words from the area's beginning; None where no slot is concerned.
    ``by``: the instruction of the entry path that stores there last, None where none does."""

    kind: Kind
    fields: tuple[str, ...]
    text: str
    word: int | None = None
    by: int | None = None

    @property
    def fault(self) -> bool:
        """True unless the statement only informs."""
        return self.kind in FAULTS


def compare(save: SaveMap, restore: RestoreMap) -> list[Statement]:
    """Statements about one pair of paths, faults first.

    The areas of the two are matched by what they hold: the offset between them is the one on which most registers
    agree (exactly known where the exit path continues behind the call that ended the entry path).
    """
    return _Comparison(save, restore).run()


def pairs(saves: Iterable[SaveMap], restores: Sequence[RestoreMap]) -> list[tuple[SaveMap, RestoreMap]]:
    """The pairs of entry and exit paths whose comparison means something.

    An exit path belongs to an entry path if it goes on behind the call that ended it and uses the same kind of area
    (the stack, or one reached through a pointer); failing that, if it loads from an area off the stack and agrees
    with the entry path on where most registers lie there. Nothing is said of an entry path that goes over to the
    interrupted stack (to let a faulted iret look like a fault of its target's) or to one computed in a way not
    followed (through a segment's base, say): it is not known what the words there hold.
    """
    found = []
    for save in saves:
        unknown = save.end is End.CALL and save.area is not None and isinstance(save.area[1], Result)
        if unknown or save.rsp.atom == Context("rsp"):
            continue
        fits = [r for r in restores if save.ended in r.follows and _from_stack(save, r) == save.on_stack]
        if not fits:
            fits = [r for r in restores if r.area is not None and r.area not in STACKS and _agree(save, r)]
        found += [(save, restore) for restore in fits]
    return found


def _continued(save: SaveMap, restore: RestoreMap, key: AreaKey) -> tuple[AreaKey, int] | None:
    """What the entry path calls the exit path's area `key`, and the offset between them, where that is known because
    the exit path goes on behind the call that ended the entry path: RSP and callee-saved registers are as they were."""
    segment, atom = key
    if save.ended not in restore.follows or segment or not isinstance(atom, Start):
        return None
    pointer = save.pointers.get(atom.name)
    return None if pointer is None else (("", pointer.atom), pointer.disp)


def _from_stack(save: SaveMap, restore: RestoreMap) -> bool:
    """True if the exit path, which goes on behind the entry path, loads from the stack."""
    if restore.area is None or restore.area in STACKS:
        return True
    known = _continued(save, restore, restore.area)
    return known is not None and known[0] in (*STACKS, ("", save.rsp.atom))


def _agree(save: SaveMap, restore: RestoreMap) -> bool:
    """True if both areas hold most of the registers they have in common at the same distance."""
    stored, loaded = save.layout, restore.layout
    common = [name for name in loaded if name in stored]
    shifts = Counter(stored[name] - loaded[name] for name in common)
    return bool(common) and 2 * shifts.most_common(1)[0][1] > len(loaded)


def register(field: str, bits: int) -> str:
    """A field as sentences name it: ``RFLAGS``, ``EBX``, ``the FS base``, ``the SIMD state``."""
    special = {"fs_base": "the FS base", "gs_base": "the GS base", "simd": "the SIMD state", "error": "the error code"}
    return special.get(field) or display_name(field, bits).upper()


class _Comparison:
    def __init__(self, save: SaveMap, restore: RestoreMap) -> None:
        self.save = save
        self.restore = restore
        self.bits = save.bits
        self.word = 8 if save.bits == 64 else 4
        self.matches = {key: self._match(key) for key in {(p.segment, p.atom) for p in restore.loaded.values()}}
        self.holders = {place: name for name, places in save.stored.items() for place in places}
        self.entry = f"the switch at {save.entry:#x}" if save.switch else f"the entry path at {save.entry:#x}"
        self.leaving = f"its end at {restore.exit:#x}" if save.switch else f"the exit path at {restore.exit:#x}"
        self.given_away = set() if save.switch else {*general(save.bits), *FRAME_FIELDS} - {*save.needed}
        self.callee_saved = callee_saved(save.bits)

    def run(self) -> list[Statement]:
        found = self._clashes()
        shared = {name for statement in found for name in statement.fields}
        said = [*self._exchanged(), *self._shifted()]
        found += said
        known = {name for statement in said for name in statement.fields}
        for name, place in self.restore.loaded.items():
            if name not in known:
                found += self._loaded(name, place, name in shared)
        found += [s for name in self.save.needed if name not in self.restore.loaded for s in self._not_loaded(name)]
        return sorted(found, key=lambda s: not s.fault)

    # matching

    def _match(self, key: AreaKey) -> tuple[AreaKey, int] | None:
        """The area of the entry path that is the exit path's `key`, and its offset: entry − exit."""
        save, restore = self.save, self.restore
        loaded = {name: p for name, p in restore.loaded.items() if (p.segment, p.atom) == key}
        exact = _continued(save, restore, key)
        if exact is not None and any((p.segment, p.atom) == exact[0] for ps in save.stored.values() for p in ps):
            return exact
        votes: Counter[tuple[AreaKey, int]] = Counter()
        for name, place in loaded.items():
            for stored in save.stored.get(name, ()):
                votes[((stored.segment, stored.atom), stored.disp - place.disp)] += 1
        if not votes:
            return None
        return max(votes, key=lambda match: (votes[match], match[0] == save.area, match[1] == 0, -abs(match[1])))

    def _in_save(self, place: Place) -> Place | None:
        """The exit path's `place` as the entry path reaches it."""
        match = self.matches.get((place.segment, place.atom))
        if match is None:
            return None
        (segment, atom), shift = match
        return Place(segment, atom, place.disp + shift)

    # statements

    def _clashes(self) -> list[Statement]:
        """Registers loaded from one slot, or stored into one."""
        found = []
        by_place: dict[Place, list[str]] = {}
        for name, place in self.restore.loaded.items():
            by_place.setdefault(place, []).append(name)
        for place, names in by_place.items():
            if len(names) > 1:
                who = " and ".join(self._name(n) for n in names)
                text = f"{self.leaving} loads {who} from the same {self._slot(place)}"
                found.append(self._statement(Kind.CLASH, tuple(names), text, place))
        for place, name in self.save.overwritten.items():
            other = self.holders.get(place)
            if other and other != name:
                text = (
                    f"{self.entry} stores {self._name(name)} and then {self._name(other)} in the same place "
                    f"{place.text(self.bits)}"
                )
                by = self.save.stored_by.get(place)
                found.append(Statement(Kind.CLASH, (name, other), text, self._index(place), by))
        return found

    def _exchanged(self) -> list[Statement]:
        """Pairs of registers each of which is loaded from the other's slot."""
        source = {name: self._held(place) for name, place in self.restore.loaded.items()}
        found = []
        for name, held in source.items():
            if held and name < held and source.get(held) == name:
                place, other = self.restore.loaded[name], self.restore.loaded[held]
                text = (
                    f"{self._name(name)} and {self._name(held)} are exchanged: {self.leaving} loads "
                    f"{self._name(name)} from {self._slot(place)} and {self._name(held)} from {self._slot(other)}, "
                    f"where {self.entry} stores them the other way round"
                )
                found.append(self._statement(Kind.EXCHANGED, (name, held), text, place))
        return found

    def _shifted(self) -> list[Statement]:
        """The frame that the exit pops is the CPU's, but for an offset."""
        offsets = set()
        for number, name in enumerate(FRAME_FIELDS):
            place = self.restore.loaded.get(name)
            inside = self._in_save(place) if place else None
            if inside is None or inside.atom != FRAME:
                return []
            offsets.add(inside.disp - number * self.word)
        if len(offsets) != 1 or 0 in offsets:
            return []
        (offset,) = offsets
        held = self._held(self.restore.loaded["rip"])
        if any(self._held(self.restore.loaded[name]) == name for name in FRAME_FIELDS):
            return []  # the entry path has moved the frame there
        also = f" and takes {self._name('rip')} from where {self.entry} has {self._name(held)}" if held else ""
        text = (
            f"{self.leaving} pops its frame {abs(offset)} bytes {'below' if offset < 0 else 'above'} "
            f"the one the CPU pushed{also}"
        )
        return [self._statement(Kind.SHIFTED, FRAME_FIELDS, text, self.restore.loaded["rip"])]

    def _held(self, place: Place) -> str:
        """The field that the entry path leaves in the slot the exit loads from."""
        inside = self._in_save(place)
        return self.holders.get(inside, "") if inside else ""

    def _loaded(self, name: str, place: Place, shared: bool) -> list[Statement]:
        inside = self._in_save(place)
        held = self._held(place)
        if name in self.given_away:
            return []
        if held == name:
            return []
        if inside is not None and inside in self.save.written and not held:
            return self._replaced(name, place, self.save.written[inside])
        entry, leaving = self.entry, self.leaving
        elsewhere = [p for p in self.save.stored.get(name, ()) if p not in self.save.by_cpu]
        also = f", where the entry path puts {self._name(held)}" if held else ""
        if not elsewhere:
            # Bases, selectors and SIMD state may be stored by compiled code in between.
            kind = Kind.NEVER_STORED if name in self.save.needed or held else Kind.ELSEWHERE
            text = f"{entry} never stores {self._name(name)}; {leaving} loads it from {self._slot(place)}{also}"
            return [self._statement(kind, (name,), text, place)]
        if shared and held:
            return []  # said by the clash
        if any(p.disp == place.disp and p.atom not in (FRAME, STACK) for p in elsewhere):
            return []  # the same slot of the area, reached through another pointer
        text = (
            f"{entry} stores {self._name(name)} in {elsewhere[0].text(self.bits)}; {leaving} loads it from "
            f"{self._slot(place)}{also}"
        )
        return [self._statement(Kind.WRONG_SLOT, (name,), text, place)]

    def _replaced(self, name: str, place: Place, value: Value) -> list[Statement]:
        """The entry path has put something else in the slot: on purpose, unless it is the handler's own flags."""
        if value != Value(Start("rflags")) or name != "rflags":
            return []
        text = (
            f"{self.entry} stores {value.text(self.bits)} as it is in the handler, not the interrupted "
            f"{self._name(name)}, in {self._slot(place)}, from which {self.leaving} loads {self._name(name)}"
        )
        return [self._statement(Kind.REPLACED, (name,), text, place)]

    def _not_loaded(self, name: str) -> list[Statement]:
        who, entry, leaving = self._name(name), self.entry, self.leaving
        left = self.restore.other.get(name)
        stored = [p for p in self.save.stored.get(name, ()) if p not in self.save.by_cpu]
        if left is not None and isinstance(left.atom, Result):
            return []  # computed in a way not followed
        if left is None and name not in self.restore.untouched:
            return []  # not a register this kind of exit sets
        if name in self.restore.untouched and self._stays(name):
            if stored or name not in self.callee_saved:
                return []
            text = f"{who} is neither stored nor loaded: it is left to compiled code, which preserves it"
            return [Statement(Kind.COMPILER, (name,), text)]
        what = f"leaves {left.text(self.bits)} in it" if left else "never loads it"
        if stored:
            text = f"{entry} stores {who} in {stored[0].text(self.bits)}; {leaving} {what}"
            by = self.save.stored_by.get(stored[0])
            return [Statement(Kind.NOT_RESTORED, (name,), text, self._index(stored[0]), by)]
        text = f"{entry} never stores {who}, and {leaving} {what}"
        return [Statement(Kind.LOST, (name,), text)]

    def _stays(self, name: str) -> bool:
        """True if a register that the exit path does not touch still holds the interrupted value: the path goes on
        where the entry path's call returns, and compiled code preserves it (or there was no call)."""
        if self.save.switch or (self.restore.area is not None and self.restore.area not in STACKS):
            return False
        return name in self.callee_saved or not self.restore.follows

    # words

    def _statement(self, kind: Kind, fields: tuple[str, ...], text: str, place: Place) -> Statement:
        inside = self._in_save(place)
        by = self.save.stored_by.get(inside) if inside is not None else None
        return Statement(kind, fields, text, self._index(inside or place), by)

    def _name(self, field: str) -> str:
        return register(field, self.bits)

    def _index(self, place: Place) -> int | None:
        """Slot number of a place (as the entry path reaches it), in words from the beginning of its area."""
        base = self.save.base if (place.segment, place.atom) == self.save.area else 0
        offset = place.disp - base
        return offset // self.word if 0 <= offset < AREA_BYTES and offset % self.word == 0 else None

    def _slot(self, place: Place) -> str:
        """``slot 17 ([rdi+0x88])``."""
        index = self._index(self._in_save(place) or place)
        where = place.text(self.bits)
        return f"slot {index} ({where})" if index is not None else where
