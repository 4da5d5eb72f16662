"""Learn a kernel's save area from the code of its entry and exit paths, and write it down as a profile.

What is learnt is what the bytes say (:mod:`gdbext.code.savemap`): where each entry path leaves each register, how that
area is reached, what the exits load from it, and where the two disagree. Live entries can confirm it
(:func:`confirm`): the area of a suspended context must hold that context.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gdbext.arch import vectors
from gdbext.arch.registers import GPR64
from gdbext.code.compare import Statement, compare, pairs
from gdbext.code.disasm import Code
from gdbext.code.graph import Graph
from gdbext.code.paths import Entry, Gateway, Limits, Reach, explore
from gdbext.code.savemap import RestoreMap, SaveMap, restore_maps, save_maps, switch_maps
from gdbext.code.values import FRAME, Loaded, Place
from gdbext.events.row import Batch, Flag, Kind
from gdbext.profiles.schema import FXSAVE, REGISTERS, ProfileFile, parse

LIMITS = Limits(instructions=40_000, calls=6)
FEW = 6
"""Registers that must lie in an area before it counts as one."""


@dataclass(slots=True)
class Learnt:
    """What the code showed. slots: field → byte offset from where the area begins; current: an expression for the
    area of the context that an entry interrupted, "" where only the handler knows it; on_stack: the area is a part of
    the handler's stack; simd: byte offset of the FXSAVE image; statements: what is wrong, with the entry (or the
    thread switch) it was seen on; confirmed, tried: live contexts held against it."""

    bits: int
    slots: dict[str, int] = field(default_factory=dict)
    current: str = ""
    on_stack: bool = False
    simd: int | None = None
    statements: list[tuple[Entry, Statement]] = field(default_factory=list)
    confirmed: int = 0
    tried: int = 0

    @property
    def found(self) -> bool:
        """True if a save area was found."""
        return bool(self.slots)

    @property
    def size(self) -> int:
        """Bytes from the area's start to the end of its last slot (or of the FXSAVE image)."""
        end = max(self.slots.values(), default=0) + self.bits // 8
        return max(end, self.simd + FXSAVE) if self.simd is not None else end

    def profile_text(self, name: str) -> str:
        """The profile as TOML."""
        lines = [
            f'name = "{name}"',
            'title = "learnt from the code of its entry and exit paths"',
            f"bits = {self.bits}",
        ]
        how = f", confirmed on {self.confirmed} of {self.tried} live contexts" if self.tried else ""
        lines.append(f'sources = ["ctxwatch learn{how}"]')
        if self.found:
            lines += ["", "[area]", f"size = {self.size}", f"word = {self.bits // 8}"]
            if self.current:
                lines.append(f'current = "{self.current}"')
            if self.on_stack:
                lines.append("stack = true")
            if self.simd is not None:
                lines.append(f"simd = {self.simd}")
            lines += ["", "[area.slots]", *(f"{slot} = {offset}" for slot, offset in self.slots.items())]
        return "\n".join(lines) + "\n"

    def profile(self, name: str = "learnt") -> ProfileFile:
        """The same, as the schema reads it."""
        return parse(self.profile_text(name), name)


def learn(code: Code, entries: Sequence[Entry]) -> Learnt:
    """Learn from the paths behind `entries` (the IDT's handlers, the system call entry); never raises."""
    reach = explore(code, entries, LIMITS)
    saves = _ways(code, entries, (False, True))
    restores = _restores(code, reach)
    learnt = _layout(code.bits, saves, restores)
    _disagreements(learnt, saves, restores)
    _switches(learnt, code, reach)
    return learnt


def learn_layout(code: Code, entries: Sequence[Entry], limits: Limits) -> Learnt:
    """The layout alone, of an area that the entry paths themselves fill: what a guest that waits can be asked for."""
    reach = explore(code, entries, limits)
    return _layout(code.bits, _ways(code, entries, (False,)), _restores(code, reach))


def _layout(bits: int, saves: Sequence[tuple[Entry, SaveMap]], restores: Sequence[RestoreMap]) -> Learnt:
    learnt = Learnt(bits)
    ways = [save for _, save in saves]
    best = _take(learnt, ways)
    if best is not None:
        _complete(learnt, best, ways, restores)
    return learnt


def _ways(code: Code, entries: Sequence[Entry], through: Sequence[bool]) -> list[tuple[Entry, SaveMap]]:
    """The ways of all entries that save something; with `through`, those that copy the context to its area only once
    a switch is decided. One way of many alike is enough: 256 stubs share one path."""
    seen: dict[object, tuple[Entry, SaveMap]] = {}
    for entry in entries:
        for save in (save for wanted in through for save in save_maps(code, entry, wanted)):
            if save.layout:
                key = (save.ended, save.origin, entry.gateway, entry.soft, tuple(save.layout.items()))
                seen.setdefault(key, (entry, save))
    return list(seen.values())


def _restores(code: Code, reach: Reach) -> list[RestoreMap]:
    graph = Graph(reach)
    return [m for leaving in reach.exits if not leaving.to_itself for m in restore_maps(code, reach, leaving, graph)]


def _take(learnt: Learnt, saves: Sequence[SaveMap]) -> SaveMap | None:
    """Take the layout with the most registers, off the stack if there is one, and of several the one that most ways
    share; return one that has it."""
    votes: Counter[tuple[tuple[str, int], ...]] = Counter()
    examples: dict[tuple[tuple[str, int], ...], SaveMap] = {}
    for save in saves:
        layout = tuple((slot, at - _start(save)) for slot, at in save.layout.items() if slot in REGISTERS)
        if len(layout) >= FEW:
            votes[layout] += len(layout)
            if layout not in examples or _tells_more(save, examples[layout]):
                examples[layout] = save
    if not votes:
        return None
    layout = max(
        votes, key=lambda slots: (not examples[slots].on_stack, len(dict(slots).keys() - {"error"}), votes[slots])
    )
    save = examples[layout]
    learnt.slots = dict(layout)
    learnt.simd = save.layout["simd"] - _start(save) if "simd" in save.layout else None
    learnt.on_stack = save.on_stack
    learnt.current = _found_by(save)
    return save


def _tells_more(save: SaveMap, other: SaveMap) -> bool:
    """Of two saves in the same order: one off the stack before one on it, from where it is copied; else one of which
    the code shows the way to the area."""
    return (not save.on_stack, bool(_found_by(save))) > (not other.on_stack, bool(_found_by(other)))


def _found_by(save: SaveMap) -> str:
    """The expression for the start of the area, "" if only the handler knows it."""
    return (expression(Place(*save.area, _start(save))) or "") if save.area is not None else ""


def _complete(learnt: Learnt, best: SaveMap, saves: Sequence[SaveMap], restores: Sequence[RestoreMap]) -> None:
    """Add slots that the chosen way does not store but others store in the same area, or exits load from it."""
    stored = [save for save in saves if save.area == best.area and not save.on_stack]
    layouts = [{name: at - _start(save) for name, at in save.layout.items()} for save in stored]
    loads = []
    for _, restore in pairs([best], restores):
        shifts = Counter(best.layout[name] - at for name, at in restore.layout.items() if name in best.layout)
        if shifts:
            shift = shifts.most_common(1)[0][0] - _start(best)
            loads.append({name: at + shift for name, at in restore.layout.items()})
    others = {at for layout in (*layouts, *loads) for name, at in layout.items() if name != "rip"}
    for layout in layouts:
        _add(learnt, layout)
    for loaded in loads:
        _choose(learnt, best, loaded, others)
        _add(learnt, loaded)
    if best.on_stack and _holds_frame(learnt):
        _add(learnt, {"error": learnt.slots["rip"] - learnt.bits // 8})  # where the CPU pushes it, or a stub its like
    learnt.slots = dict(sorted(learnt.slots.items(), key=lambda item: item[1]))


def _holds_frame(learnt: Learnt) -> bool:
    """True if the slots of RIP, CS and RFLAGS follow one another as in the frame that the CPU pushes."""
    start = learnt.slots.get("rip")
    if start is None:
        return False
    word = learnt.bits // 8
    return learnt.slots.get("cs") == start + word and learnt.slots.get("rflags") == start + 2 * word


def _choose(learnt: Learnt, best: SaveMap, loaded: dict[str, int], others: set[int]) -> None:
    """A register that is stored twice has its slot where the exit loads it from; RIP's other copy is its own slot,
    unless it is one of `others`: another way has a register there (after ``syscall`` RCX holds RIP)."""
    area, start = best.area, _start(best)
    for name, places in best.stored.items():
        inside = {p.disp - start for p in places if (p.segment, p.atom) == area}
        at = loaded.get(name, -1)
        if name in learnt.slots and at in inside and at != learnt.slots[name]:
            if name == "rip" and learnt.slots[name] not in others:
                learnt.slots.setdefault("fault_rip", learnt.slots[name])
            learnt.slots[name] = at


def _add(learnt: Learnt, layout: dict[str, int]) -> None:
    """Take over those slots of `layout` that are free."""
    word = learnt.bits // 8
    for name, at in layout.items():
        free = at >= 0 and all(abs(at - taken) >= word for taken in learnt.slots.values())
        if name in REGISTERS and name not in learnt.slots and free:
            learnt.slots[name] = at


def _start(save: SaveMap) -> int:
    """Where the area begins, from the address by which it is reached: an area that was pushed, at its lowest slot."""
    lowest = min(save.layout.values())
    return lowest if save.on_stack else min(lowest, 0)


def expression(place: Place) -> str | None:
    """The address of `place` in the language of profiles (``[gs:8]``), or None where it depends on a register that
    only the code knows."""
    atom = place.atom
    if atom == FRAME:
        return f"frame - {-place.disp}" if place.disp < 0 else f"frame + {place.disp}"
    offset = f" + {place.disp}" if place.disp > 0 else f" - {-place.disp}" if place.disp < 0 else ""
    if atom is None:
        return f"{place.segment}:{place.disp}" if place.segment else f"{place.disp:#x}"
    if isinstance(atom, Loaded):
        inner = expression(atom.place)
        return None if inner is None or place.segment else f"[{inner}]{offset}"
    return None


def _disagreements(learnt: Learnt, saves: Sequence[tuple[Entry, SaveMap]], restores: Sequence[RestoreMap]) -> None:
    """What the entry and exit paths that belong together say of each other."""
    told: set[object] = set()
    for entry, save in saves:
        for _, restore in pairs([save], restores):
            for statement in compare(save, restore):
                key = (statement.kind, statement.fields, statement.word, entry.gateway)
                if statement.fault and key not in told:
                    told.add(key)
                    learnt.statements.append((entry, statement))


def _switches(learnt: Learnt, code: Code, reach: Reach) -> None:
    """What the two halves of each thread switch say of each other."""
    for function in reach.switch_functions:
        maps = switch_maps(code, function)
        for statement in compare(*maps) if maps else ():
            if statement.fault:
                learnt.statements.append((Entry(function.entry), statement))


def confirm(learnt: Learnt, rows: Batch) -> None:
    """Hold the learnt layout against live saves: `rows` in order of ``seq``, with the areas found and the stores seen.

    A save counts if at least FEW slots of one area were stored between an entry and the CPU's next entry or exit; it
    confirms the layout if each held the interrupted register's value first.
    """
    starts = [int(at) for at in rows["addr"][rows["kind"] == Kind.AREA]]
    slots = {start + at: name for start in starts for name, at in learnt.slots.items() if name in _COMPARED}
    saving: dict[int, tuple[Batch, dict[int, int]]] = {}
    for index in np.flatnonzero(np.isin(rows["kind"], (Kind.ENTRY, Kind.EXIT, Kind.STORE))):
        row = rows[index : index + 1]
        cpu = int(row["cpu"][0])
        if row["kind"][0] == Kind.STORE:
            if cpu in saving and int(row["addr"][0]) in slots:
                saving[cpu][1].setdefault(int(row["addr"][0]), int(row["value"][0]))
            continue
        context, stored = saving.pop(cpu, (row, {}))
        if len(stored) >= FEW:
            learnt.tried += 1
            learnt.confirmed += all(value == int(context[slots[at]][0]) for at, value in stored.items())
        if row["kind"][0] == Kind.ENTRY and not row["flags"][0] & Flag.UNREADABLE:
            saving[cpu] = row, {}


_COMPARED = frozenset({*GPR64, "rip", "rflags"})


def describe(entry: Entry) -> str:
    """An entry as a person names it: ``#PF page fault at 0x…``."""
    what = {Gateway.SYSCALL: "syscall", Gateway.SYSENTER: "sysenter"}.get(entry.gateway)
    if what is None:  # no vector: a thread switch, or an entry point that no table names
        what = vectors.name(entry.vector) if entry.vector != vectors.UNKNOWN else "code"
    return f"{what} at {entry.address:#x}"
