"""What the guest's code says of the path a finding went through: save map, restore map, their disagreements.

Each handler and exit is decoded once. Code that cannot be read or followed says nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from gdbext.code.classify import stores_stack_pointer
from gdbext.code.compare import Kind, Statement, compare, pairs
from gdbext.code.disasm import Code, Flow
from gdbext.code.graph import Graph
from gdbext.code.listing import listing
from gdbext.code.paths import Entry, Gateway, Limits, explore
from gdbext.code.savemap import RestoreMap, SaveMap, restore_maps, save_maps, switch_maps
from gdbext.code.switches import switch_after
from gdbext.code.values import STACKS, Place
from gdbext.events.row import Batch, Flag, How
from gdbext.ledger.compare import is_user
from gdbext.rules.guest import GuestView

LIMITS: Final = Limits(instructions=30_000, calls=5)
_IN_FRONT: Final = 8
"""Instructions looked back for a push."""
SWITCH_LIMITS: Final = Limits(instructions=200, calls=0)


class PathFacts:
    """Code facts by (handler, exit), kept."""

    def __init__(self, guest: GuestView) -> None:
        self._guest = guest
        self._codes: dict[int, Code] = {}
        self._saves: dict[Entry, list[SaveMap]] = {}
        self._statements: dict[tuple[Entry, int, str], list[Statement]] = {}
        self._restores: dict[tuple[int, int], list[RestoreMap]] = {}
        self._entries: dict[int, Entry] = {}

    def statements(self, entry: Batch, leaving: Batch) -> list[Statement]:
        """What save and restore path of this entry and exit (batches of one) say of one another, faults first.

        Only ways that belong together are compared (:func:`gdbext.code.compare.pairs`), and of the entry's only those
        that code of the interrupted privilege level takes.
        """
        if not int(entry["pc"][0]):
            return []
        key = (entry_of(entry), int(leaving["pc"][0]), _origin(entry))
        if key not in self._statements:
            told: dict[tuple[object, ...], Statement] = {}
            for save, restore in self._ways(entry, leaving):
                for statement in compare(save, restore):
                    told.setdefault((statement.kind, statement.fields, statement.word), statement)
            self._statements[key] = sorted(told.values(), key=lambda statement: not statement.fault)
        return self._statements[key]

    def _ways(self, entry: Batch, leaving: Batch) -> list[tuple[SaveMap, RestoreMap]]:
        """The ways in, for code of the interrupted privilege level, beside the ways out that belong to them."""
        if not int(entry["pc"][0]):
            return []
        key, origin = entry_of(entry), _origin(entry)
        saves = [save for save in self._save(key, leaving) if save.origin in ("", origin)]
        return pairs(saves, self._restore(key, leaving))

    def switch_statements(self, left: Batch, back: Batch) -> list[Statement]:
        """What the thread switch that begins at the SWITCH_OUT row `left` and ends at the SWITCH_IN row `back` (batches
        of one) stores and loads wrongly."""
        code, start = self._code(back), int(left["pc"][0])
        reach = explore(code, [Entry(start)], SWITCH_LIMITS)
        for address in sorted(reach.successors):
            insn = code.insn(address)
            if insn is not None and stores_stack_pointer(insn):
                function = switch_after(code, reach, address, start)
                maps = switch_maps(code, function) if function is not None else None
                return compare(*maps) if maps is not None else []
        return []

    def stores(self, entry: Batch, leaving: Batch, field: str) -> bool:
        """True if some way of the entry path stores `field` in an area, for code of the interrupted privilege level."""
        if not int(entry["pc"][0]):
            return False
        saves = self._save(entry_of(entry), leaving)
        return any(save.origin in ("", _origin(entry)) and field in save.layout for save in saves)

    def not_loaded(self, entry: Batch, leaving: Batch, field: str) -> tuple[int, int] | None:
        """(slot, the instruction that stores there) of a `field` that the entry path stores and no way of the exit path
        loads, counted in words from where its area begins; None of all others."""
        ways = self._ways(entry, leaving)
        if not ways or any(field in restore.loaded for _, restore in ways):
            return None
        for save, _ in ways:
            area, at = save.area, save.layout.get(field)
            by = save.stored_by.get(Place(*area, at)) if area is not None and at is not None else None
            if at is not None and by:  # the CPU's own store has no instruction
                return (at - save.base) // (save.bits // 8), by
        return None

    def shared(self, entry: Batch, leaving: Batch, field: str) -> tuple[str, int] | None:
        """(place, the instruction that stores there) of a `field` that goes through a place reached by no pointer, so
        that all threads share it (all of a CPU, where it is relative to the GS base); None of all others."""
        for save, restore in self._ways(entry, leaving):
            place = restore.loaded.get(field)
            if place is not None and place.atom is None and place in save.stored_by:
                return place.text(save.bits), save.stored_by[place]
        return None

    def calculates(self, entry: Batch, register: str) -> int | None:
        """The instruction of the handler, fewest calls away, that calculates in `register` (``xmm0``); None if none."""
        key = entry_of(entry)
        if not key.address:
            return None
        code = self._code(entry)
        reach = explore(code, [key], LIMITS)
        decoded = ((at, code.insn(at)) for at in reach.successors)
        found = [at for at, insn in decoded if insn is not None and insn.op_str.startswith(f"{register}, ")]
        return min(found, key=lambda at: (reach.depth(at), at), default=None)

    def pushed_before(self, entry: Batch) -> int | None:
        """The last push in front of the instruction that `entry` (a batch of one) interrupted, where straight code
        leads from one to the other; None if there is none."""
        for insn in reversed(listing(self._code(entry), int(entry["rip"][0]), before=_IN_FRONT, after=0)[:-1]):
            if insn.flow is not Flow.NEXT:
                return None
            if insn.name.startswith("push"):
                return insn.address
        return None

    def copies(self, entry: Batch, leaving: Batch, fields: Collection[str]) -> bool:
        """True if the entry path copies `fields` of the frame to an area, and the exit loads them from there."""
        statements = self.statements(entry, leaving)
        if not int(entry["frame"][0]) or any(s.fault and set(s.fields) & set(fields) for s in statements):
            return False
        restores = self._restore(entry_of(entry), leaving)
        loaded = any(set(fields) <= restore.layout.keys() and restore.area not in STACKS for restore in restores)
        return loaded and all(self.stores(entry, leaving, field) for field in fields)

    def loaded_from(self, leaving: Batch, entry: Batch, field: str) -> int | None:
        """The address (guest virtual) from which the iret's path loaded `field`, where that is the stack on which its
        frame lay; None elsewhere, and where the code does not show it."""
        if int(leaving["how"][0]) != How.IRET or not int(entry["pc"][0]):
            return None
        for restore in self._restore(entry_of(entry), leaving):
            if not restore.in_place:
                continue
            own, frame = restore.loaded.get(field), restore.loaded.get("rip")
            if own is not None and frame is not None and (own.segment, own.atom) == (frame.segment, frame.atom):
                return int(leaving["frame"][0]) + own.disp - frame.disp
        return None

    def restores_any(self, entry: Batch, leaving: Batch, fields: Collection[str]) -> bool | None:
        """True if some way of the exit path loads one of `fields` from where the entry path puts it on all of its ways;
        None if the exit path could not be followed. What it loads from elsewhere is a result."""
        if not int(entry["pc"][0]):
            return None
        ways = self._restore(entry_of(entry), leaving)
        loaded = {field for restore in ways for field in restore.loaded} & set(fields)
        others = {
            field
            for statement in self.statements(entry, leaving)
            if statement.kind is Kind.NEVER_STORED
            for field in statement.fields
        }
        return bool(loaded - others) if ways else None

    def keeps(self, entry: Batch, leaving: Batch, fields: Collection[str]) -> bool:
        """True if every way in stores `fields` in an area and the ways out that belong to it load them from there."""
        ways = self._ways(entry, leaving)
        if not ways or any(s.fault and set(s.fields) & set(fields) for s in self.statements(entry, leaving)):
            return False
        names = set(fields)
        return all(names <= save.layout.keys() and names <= restore.loaded.keys() for save, restore in ways)

    def frame_in_place(self, entry: Batch, leaving: Batch) -> bool | None:
        """True if the exit pops the very frame the CPU pushed, False if code built it; None if that is not known."""
        if int(leaving["how"][0]) != How.IRET or entry["frame"][0] != leaving["frame"][0]:
            return False
        maps = self._restore(entry_of(entry), leaving)
        return maps[0].in_place if maps else None

    def _code(self, row: Batch) -> Code:
        bits = 64 if row["mode"][0] == 64 else 32
        return self._codes.setdefault(bits, Code(self._guest.read, bits))

    def _save(self, entry: Entry, row: Batch) -> list[SaveMap]:
        """The ways of `entry`, those included that copy the context to an area only once a switch is decided."""
        if entry not in self._saves:
            code = self._code(row)
            self._saves[entry] = [m for through in (False, True) for m in save_maps(code, entry, through)]
        return self._saves[entry]

    def _restore(self, entry: Entry, leaving: Batch) -> list[RestoreMap]:
        pc = int(leaving["pc"][0])
        key = (entry.address, pc)
        if key not in self._restores:
            code = self._code(leaving)
            self._entries[entry.address] = entry
            reach = explore(code, [entry], LIMITS)
            exit_ = next((e for e in reach.exits if e.address == pc), None)
            if exit_ is None:  # reached by a switch of stacks: begin at every handler seen
                reach = explore(code, self._entries.values(), LIMITS)
                exit_ = next((e for e in reach.exits if e.address == pc), None)
            self._restores[key] = restore_maps(code, reach, exit_, Graph(reach)) if exit_ else []
        return self._restores[key]


def _origin(entry: Batch) -> str:
    return "user" if bool(is_user(entry)[0]) else "kernel"


def entry_of(row: Batch) -> Entry:
    """The entry point that an ENTRY row (a batch of one) shows."""
    how = int(row["how"][0])
    gateway = {How.SYSCALL: Gateway.SYSCALL, How.SYSENTER: Gateway.SYSENTER}.get(how, Gateway.INTERRUPT)
    has_code = bool(row["flags"][0] & Flag.ERROR_CODE)
    return Entry(int(row["pc"][0]), gateway, int(row["vector"][0]), error_code=has_code, soft=how == How.SOFT)
