"""Learn a kernel's save area from the code of its entry and exit paths, and write it down as a profile.

What is learnt is what the bytes say (:mod:`gdbext.code.savemap`): where each entry path leaves each register, how that
area is reached, what the exits load from it, and where the two disagree. Live entries can confirm it
(:func:`confirm`): the area of a suspended context must hold that context.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from gdbext.arch import vectors
from gdbext.code.compare import Kind as Fact
from gdbext.code.compare import Statement, compare
from gdbext.code.disasm import Code
from gdbext.code.graph import Graph
from gdbext.code.paths import Entry, Gateway, Limits, Reach, explore
from gdbext.code.savemap import RestoreMap, SaveMap, restore_maps, save_maps
from gdbext.code.values import FRAME, STACK, Loaded, Place
from gdbext.events.row import Batch
from gdbext.profiles.expression import Expression, Scope
from gdbext.profiles.schema import REGISTERS, ProfileFile, parse

LIMITS = Limits(instructions=40_000, calls=6)
_SLOT_FACTS = frozenset({Fact.NEVER_STORED, Fact.WRONG_SLOT, Fact.EXCHANGED, Fact.CLASH})
FEW = 6
"""Registers that must lie in an area before it counts as one."""


@dataclass(slots=True)
class Learnt:
    """What the code showed. slots: field → byte offset from where the area begins; current: an expression for the
    running context's area, "" where it lies on the stack; by_path: entry → what is said of it."""

    bits: int
    slots: dict[str, int] = field(default_factory=dict)
    current: str = ""
    on_stack: bool = False
    simd: int | None = None
    statements: list[tuple[Entry, Statement]] = field(default_factory=list)
    never: dict[str, list[Entry]] = field(default_factory=dict)
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
        return max(end, self.simd + 512) if self.simd is not None else end

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
            lines += ["", "[area.slots]", *(f"{slot} = {offset}" for slot, offset in self.slots.items())]
        return "\n".join(lines) + "\n"

    def profile(self, name: str = "learnt") -> ProfileFile:
        """The same, as the schema reads it."""
        return parse(self.profile_text(name), name)


def learn(code: Code, entries: Sequence[Entry]) -> Learnt:
    """Learn from the paths behind `entries` (the IDT's handlers, the system call entry); never raises."""
    learnt = Learnt(code.bits)
    maps = [(entry, found[0]) for entry in entries if (found := save_maps(code, entry)) and found[0].layout]
    votes: Counter[tuple[tuple[str, int], ...]] = Counter()
    examples: dict[tuple[tuple[str, int], ...], SaveMap] = {}
    for _, save in maps:
        layout = tuple((slot, at) for slot, at in save.layout.items() if slot in REGISTERS)
        if len(layout) >= FEW:
            votes[layout] += len(layout)
            examples.setdefault(layout, save)
    if votes:
        _take(learnt, examples[votes.most_common(1)[0][0]])
    reach = explore(code, entries, LIMITS)
    _disagreements(learnt, code, reach, _distinct(maps))
    return learnt


def _take(learnt: Learnt, save: SaveMap) -> None:
    base = min(save.layout.values())
    start = min(base, 0) if save.area is not None and save.area[1] not in (FRAME, STACK) else base
    learnt.slots = {slot: at - start for slot, at in save.layout.items() if slot in REGISTERS}
    learnt.simd = save.layout["simd"] - start if "simd" in save.layout else None
    area = save.area
    learnt.on_stack = area is not None and area[1] in (FRAME, STACK)
    if area is not None and not learnt.on_stack:
        segment, atom = area
        text = expression(Place(segment, atom, start))
        learnt.current = text or ""


def expression(place: Place) -> str | None:
    """The address of `place` in the language of profiles (``[gs:8]``), or None where it depends on a register that
    only the code knows."""
    atom = place.atom
    offset = f" + {place.disp}" if place.disp > 0 else f" - {-place.disp}" if place.disp < 0 else ""
    if atom is None:
        return f"{place.segment}:{place.disp}" if place.segment else f"{place.disp:#x}"
    if isinstance(atom, Loaded):
        inner = expression(atom.place)
        return None if inner is None or place.segment else f"[{inner}]{offset}"
    return None


def _distinct(maps: Iterable[tuple[Entry, SaveMap]]) -> list[tuple[Entry, SaveMap]]:
    """One representative for each way of saving: 256 stubs share one path."""
    seen: dict[object, tuple[Entry, SaveMap]] = {}
    for entry, save in maps:
        seen.setdefault((save.ended, entry.gateway, tuple(save.layout.items())), (entry, save))
    return list(seen.values())


def _disagreements(learnt: Learnt, code: Code, reach: Reach, maps: list[tuple[Entry, SaveMap]]) -> None:
    graph = Graph(reach)
    restores: list[RestoreMap] = [
        m for e in reach.exits if not e.to_itself for m in restore_maps(code, reach, e, graph)
    ]
    told: set[tuple[str, ...]] = set()
    for entry, save in maps:
        for name in save.never:
            learnt.never.setdefault(name, []).append(entry)
        for restore in restores:
            if restore.follows and save.ended not in restore.follows and len(restores) > 1:
                continue
            statements = [s for s in compare(save, restore) if s.kind in _SLOT_FACTS]
            if len(statements) * 4 > len(restore.loaded):
                continue  # not the other end of this path: hardly anything lies where it is looked for
            for statement in statements:
                key = (statement.kind.value, *statement.fields, str(entry.gateway))
                if key not in told:
                    told.add(key)
                    learnt.statements.append((entry, statement))


def confirm(learnt: Learnt, contexts: Batch, scope: Callable[[Batch], Scope]) -> None:
    """Hold the learnt area against suspended contexts (batches of one each): does it contain them?

    scope: for a context, the registers and memory in which ``current`` is to be evaluated.
    """
    if not learnt.current:
        return
    where = Expression(learnt.current)
    word = learnt.bits // 8
    for index in range(len(contexts)):
        context = contexts[index : index + 1]
        here = scope(context)
        try:
            start = where.evaluate(here)
            held = {
                slot: int.from_bytes(here.read(start + at, word), "little")
                for slot, at in learnt.slots.items()
                if slot in ("rip", "rsp", "rbx", "rbp")
            }
        except OSError:
            continue
        learnt.tried += 1
        learnt.confirmed += bool(held) and all(value == int(context[slot][0]) for slot, value in held.items())


def describe(entry: Entry) -> str:
    """An entry as a person names it: ``#PF page fault at 0x…``."""
    what = {Gateway.SYSCALL: "syscall", Gateway.SYSENTER: "sysenter"}.get(entry.gateway) or vectors.name(entry.vector)
    return f"{what} at {entry.address:#x}"
