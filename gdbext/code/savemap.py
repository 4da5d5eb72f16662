"""Where an entry path puts the interrupted context, and from where an exit path takes the one it resumes.

:func:`save_maps` follows values forward from an entry until compiled code is called; :func:`restore_maps` follows
them from behind the last such call to an exit; :func:`switch_maps` does both for a thread switch. What the two say
about one another is :mod:`gdbext.code.compare`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from gdbext.arch.frames import FRAME_FIELDS
from gdbext.arch.registers import CALLEE_SAVED_32, CALLEE_SAVED_64, GPR64
from gdbext.arch.vectors import WITH_ERROR_CODE
from gdbext.code.disasm import Code, Flow
from gdbext.code.graph import Graph
from gdbext.code.machine import execute
from gdbext.code.paths import Entry, Exit, Gateway, Reach
from gdbext.code.state import State
from gdbext.code.switches import SwitchFunction
from gdbext.code.values import FRAME, STACK, STACKS, Atom, Context, Place, Result, Start, Value
from gdbext.code.walk import Bounds, End, Path, Walker

AreaKey = tuple[str, Atom | None]
"""(segment, origin) through which an area is reached."""


@dataclass(frozen=True, slots=True)
class SaveMap:
    """Where one path from an entry (or into a thread switch) leaves the context.

    ``stored``: field → places that hold it at the end of the path, the frame that the CPU pushed included;
    ``by_cpu``: the places of that frame; ``kept``: general registers that still hold their interrupted value;
    ``written``: everything else the path wrote and left, place → value; ``overwritten``: place → the field
    that was stored there before another one; ``needed``: the fields such a path has to keep. ``origin``: ``user`` or
    ``kernel`` if the path decided on the saved CS; ``ended``: the address of the instruction it ended at (the call of
    compiled code), ``pointers``: RSP and the callee-saved registers there. ``stored_by``: place → the instruction that
    stored there last. ``switch``: the path is a thread switch's, not an entry's. ``called_on``: the stacks on which it
    called compiled code before its end.
    """

    entry: int
    bits: int
    origin: str
    stored: dict[str, tuple[Place, ...]]
    by_cpu: frozenset[Place]
    written: dict[Place, Value]
    overwritten: dict[Place, str]
    needed: tuple[str, ...]
    ended: int
    end: End
    pointers: dict[str, Value]
    stored_by: dict[Place, int]
    switch: bool = False
    called_on: frozenset[AreaKey] = frozenset()

    @property
    def rsp(self) -> Value:
        """The stack pointer at the end of the path."""
        return self.pointers["rsp"]

    @property
    def area(self) -> AreaKey | None:
        """The area that holds most of what the code itself stored."""
        return _busiest(p for places in self.stored.values() for p in places if p not in self.by_cpu)

    @property
    def layout(self) -> dict[str, int]:
        """field → offset in bytes in :attr:`area` (from the address by which it is reached), in order of offset."""
        area = self.area
        slots = {}
        for name, places in self.stored.items():
            inside = [p.disp for p in places if (p.segment, p.atom) == area]
            if inside:
                slots[name] = min(inside)
        return dict(sorted(slots.items(), key=lambda item: item[1]))

    @property
    def base(self) -> int:
        """Offset at which the area begins: 0 if it is reached by its own address, else its lowest slot (an area that
        was pushed)."""
        lowest = min(self.layout.values(), default=0)
        return min(lowest, 0)

    @property
    def never(self) -> tuple[str, ...]:
        """Needed fields that the area does not hold. The CPU's own frame counts only where it is part of the area."""
        layout = self.layout
        return tuple(name for name in self.needed if name not in layout)

    @property
    def on_stack(self) -> bool:
        """True if the area is a stack on which the path runs, or ran compiled code, or the one the frame was pushed
        on."""
        area = self.area
        return area is not None and (area in STACKS or area == ("", self.rsp.atom) or area in self.called_on)


@dataclass(frozen=True, slots=True)
class RestoreMap:
    """From where one path to an exit (or out of a thread switch) takes the context it resumes.

    ``loaded``: field → place; ``untouched``: registers that hold what they held where the path begins; ``other``:
    field → value that is neither. ``follows``: the calls that return where such a path begins.  ``in_place``: an iret's
    frame is not built by this path, on whichever stack, but popped from where it lay.
    """

    exit: int
    follows: frozenset[int]
    loaded: dict[str, Place]
    untouched: frozenset[str]
    other: dict[str, Value]
    in_place: bool = False

    @property
    def area(self) -> AreaKey | None:
        """The area from which most is loaded."""
        return _busiest(self.loaded.values())

    @property
    def layout(self) -> dict[str, int]:
        """field → offset in bytes in :attr:`area`, in order of offset."""
        area = self.area
        slots = {name: p.disp for name, p in self.loaded.items() if (p.segment, p.atom) == area}
        return dict(sorted(slots.items(), key=lambda item: item[1]))


GIVEN_AWAY: Final = {
    Gateway.INTERRUPT: frozenset[str](),
    Gateway.SYSCALL: frozenset({"rax", "rcx", "r11", "cs", "ss"}),
    Gateway.SYSENTER: frozenset({"rax", "rcx", "rdx", "rip", "rsp", "cs", "ss"}),
}
"""Fields that such an entry need not keep: the result, what the instruction itself uses, what the CPU does not tell."""
_EXIT_BOUNDS: Final = Bounds(steps=300, paths=32)
_CALLEE_BOUNDS: Final = Bounds(steps=60, paths=4)
_BEHIND: Final = 512
"""Bytes behind its load of RSP within which a hand-written switch goes on."""
_STEPS_BACK: Final = 250
_HEADS: Final = 24


def _busiest(places: Iterable[Place]) -> AreaKey | None:
    counts = Counter((p.segment, p.atom) for p in places)
    return counts.most_common(1)[0][0] if counts else None


def general(bits: int) -> tuple[str, ...]:
    """The general registers of a mode."""
    return GPR64 if bits == 64 else GPR64[:8]


def save_maps(code: Code, entry: Entry, through: bool = False) -> list[SaveMap]:
    """One map for each distinct way from `entry` to its first call of compiled code, the fullest first.

    With `through`, the ways go on behind such calls, on what the ABI promises of them, and only those count that end
    with the context in an area off the stack: kernels that copy it there once the handler has decided to switch.
    Assumes an error code where `entry` says so or, if it does not, where its vector has one. Branches on the saved CS
    are followed consistently. Never raises for anything the code may hold.
    """
    has_code = entry.error_code if entry.error_code is not None else entry.vector in WITH_ERROR_CODE
    maps: list[SaveMap] = []
    for path in Walker(code, through=through).run(entry.address, at_entry(code.bits, entry.gateway, has_code)):
        if path.end is End.LOST:
            continue
        found = _save_map(entry, path)
        if through and (found.area is None or found.on_stack):
            continue
        if not any((m.origin, m.stored, m.ended) == (found.origin, found.stored, found.ended) for m in maps):
            maps.append(found)
    return sorted(maps, key=lambda m: len(m.never))


def at_entry(bits: int, gateway: Gateway, error_code: bool) -> State:
    """The machine at an entry: registers hold the interrupted context, the frame is pushed (where there is one)."""
    state = State(bits)
    for name in (*general(bits), "ds", "es", "fs", "gs", "fs_base", "gs_base", "kernel_gs_base", "simd"):
        state.regs[name] = Value(Context(name))
    for number in range(16):
        state.regs[f"xmm{number}"] = Value(Context(f"xmm{number}"))
    if gateway is Gateway.SYSCALL:
        state.regs["rcx"], state.regs["r11"] = Value(Context("rip")), Value(Context("rflags"))
    elif gateway is Gateway.SYSENTER:
        state.regs["rsp"], state.regs["rflags"] = Value(STACK), Value(Context("rflags"))  # but for IF, VM and RF
    else:
        state.regs["rsp"] = Value(FRAME)
        for number, name in enumerate(FRAME_FIELDS):
            state.store(state.stack_place(number * state.word), state.word, Value(Context(name)))
        if error_code:
            state.push(Value(Context("error")), state.word)
    return state


def _save_map(entry: Entry, path: Path) -> SaveMap:
    state = path.state
    stored, written = _stored(state)
    word = state.word
    frame = {Place("", FRAME, number * word) for number in range(len(FRAME_FIELDS))}
    by_cpu = frozenset(p for places in stored.values() for p in places if p in frame)
    fields = (*general(state.bits), *FRAME_FIELDS)
    given_away = GIVEN_AWAY[entry.gateway] | ({"rax"} if entry.soft else set())
    fields = tuple(f for f in fields if f not in given_away)
    return SaveMap(
        entry=entry.address,
        bits=state.bits,
        origin=state.origin,
        stored=stored,
        by_cpu=by_cpu,
        written=written,
        overwritten=state.overwritten,
        needed=tuple(dict.fromkeys(fields)),
        ended=path.address,
        end=path.end,
        pointers=_pointers(state),
        stored_by=state.stored_by,
        called_on=frozenset(state.called_on),
    )


def _stored(state: State) -> tuple[dict[str, tuple[Place, ...]], dict[Place, Value]]:
    """(field → places that hold it, place → other values)."""
    stored: dict[str, list[Place]] = {}
    written: dict[Place, Value] = {}
    for place, _, value in state.stored():
        if value.context:
            stored.setdefault(value.context, []).append(place)
        else:
            written[place] = value
    return {name: tuple(places) for name, places in stored.items()}, written


def _pointers(state: State) -> dict[str, Value]:
    return {name: state.regs[name] for name in ("rsp", *callee_saved(state.bits))}


def callee_saved(bits: int) -> tuple[str, ...]:
    """The general registers that compiled code preserves, but RSP."""
    return CALLEE_SAVED_64 if bits == 64 else CALLEE_SAVED_32


def restore_maps(code: Code, reach: Reach, leaving: Exit, graph: Graph | None = None) -> list[RestoreMap]:
    """One map for each distinct way to the exit `leaving`, the fullest first.

    The ways begin behind the last call before the exit, or at a function's or entry's first instruction. Pass `graph`
    when asking for several exits of one `reach`.
    """
    graph = graph or Graph(reach)
    inside = graph.backward([leaving.address], lambda _: False, _STEPS_BACK)
    heads = sorted(a for a in inside if a in graph.returns or not any(b in inside for b in graph.before(a)))
    walker = Walker(code, _EXIT_BOUNDS, frozenset({leaving.address}), inside.__contains__)
    maps: list[RestoreMap] = []
    for head in heads[:_HEADS]:
        follows = frozenset({graph.returns[head]} if head in graph.returns else ())
        state = State(code.bits)
        for call in follows:
            for name in _set_by(code, call):
                state.regs[name] = Value(Result(call, name))
        for path in walker.run(head, state, helpers=0):
            if path.end is End.STOP:
                _merge(maps, _restore_map(path.state, leaving, follows))
    return sorted(maps, key=lambda m: -len(m.loaded))


def _set_by(code: Code, call: int) -> set[str]:
    """The callee-saved registers that the function called at `call` returns with other values: it is a helper that
    loads them, no compiled code. Of one that is not followed to its end, none are known."""
    insn = code.insn(call)
    if insn is None or insn.target is None:
        return set()
    state = State(code.bits)
    execute(state, insn, code)
    ways = Walker(code, _CALLEE_BOUNDS, frozenset({insn.end})).run(insn.target, state, helpers=0)
    back = [way.state for way in ways if way.end is End.STOP]
    return {name for name in callee_saved(code.bits) if any(s.regs[name] != Value(Start(name)) for s in back)}


def _merge(maps: list[RestoreMap], found: RestoreMap) -> None:
    """Add `found`, or its calls to the map that is like it but for where it begins."""
    for number, known in enumerate(maps):
        if (known.loaded, known.other) == (found.loaded, found.other):
            maps[number] = replace(known, follows=known.follows | found.follows)
            return
    maps.append(found)


def _restore_map(state: State, leaving: Exit, follows: frozenset[int]) -> RestoreMap:
    values = {name: state.regs[name] for name in general(state.bits) if name != "rsp"}
    if leaving.how == "iret":
        for number, name in enumerate(FRAME_FIELDS):
            values[name] = state.load(state.stack_place(number * leaving.word), leaving.word, leaving.address)
    elif leaving.how == "sysret":
        values |= {"rip": values.pop("rcx"), "rsp": state.rsp}
        if "r11" in values:
            values["rflags"] = values.pop("r11")
    else:
        values |= {"rip": values.pop("rdx"), "rsp": values.pop("rcx")}
    for name in ("fs_base", "gs_base", "simd", "ds", "es", "fs", "gs"):
        swapped = name == "gs_base" and state.regs[name] == Value(Start("kernel_gs_base"))
        if state.regs[name] != Value(Start(name)) and not swapped:
            values[name] = state.regs[name]
    found = _taken(leaving.address, follows, values)
    return replace(found, in_place=leaving.how == "iret" and values["rip"].place == state.stack_place(0))


def _taken(exit_: int, follows: frozenset[int], values: dict[str, Value]) -> RestoreMap:
    loaded = {name: place for name, value in values.items() if (place := value.place) is not None}
    untouched = frozenset(name for name, value in values.items() if value == Value(Start(name)))
    other = {name: value for name, value in values.items() if name not in loaded and name not in untouched}
    return RestoreMap(exit_, follows, loaded, untouched, other)


def switch_maps(code: Code, function: SwitchFunction) -> tuple[SaveMap, RestoreMap] | None:
    """What a thread switch stores of the thread that leaves, and loads for the one that comes; None if its paths
    could not be followed."""
    state = State(code.bits)
    fields = callee_saved(code.bits)
    for name in (*fields, "rflags", "fs_base", "simd"):
        state.regs[name] = Value(Context(name))
    leaving = next(
        (p for p in Walker(code, stop=frozenset({function.load})).run(function.entry, state) if p.end is End.STOP), None
    )
    load = code.insn(function.load)
    if leaving is None or load is None:
        return None
    stored, written = _stored(leaving.state)
    save = SaveMap(
        entry=function.entry,
        bits=code.bits,
        origin="",
        stored=stored,
        by_cpu=frozenset(),
        written=written,
        overwritten=leaving.state.overwritten,
        needed=fields,
        ended=function.load,
        end=End.STOP,
        pointers=_pointers(leaving.state),
        stored_by=leaving.state.stored_by,
        switch=True,
    )
    walker = Walker(code, stop=frozenset(function.ends))
    coming = next((p for p in walker.run(load.end, State(code.bits)) if p.end is End.STOP), None)
    if coming is None:
        return None
    last = code.insn(coming.address)
    if last is not None and last.flow is Flow.JUMP and last.target is None:
        again = _where_it_goes_on(code, function, save)
        walker = Walker(code, stop=frozenset(again[1:]))
        coming = next((p for p in walker.run(again[0], coming.state) if p.end is End.STOP), None) if again else None
        if coming is None:
            return None
    values = {name: coming.state.regs[name] for name in (*fields, "rflags")}
    for name in ("fs_base", "simd"):
        if coming.state.regs[name] != Value(Start(name)):
            values[name] = coming.state.regs[name]
    return save, _taken(coming.address, frozenset({function.load}), values)


def _where_it_goes_on(code: Code, function: SwitchFunction, save: SaveMap) -> tuple[int, int] | tuple[()]:
    """Where a thread goes on whose switch ends in a jump through memory: an address behind that it has stored, and the
    ``ret`` that follows there; nothing if there is none."""
    for value in save.written.values():
        start = address = value.constant or 0
        if not function.load < start < function.load + _BEHIND:
            continue
        while (insn := code.insn(address)) is not None and insn.flow is Flow.NEXT and address < start + _BEHIND:
            address = insn.end
        if insn is not None and insn.flow is Flow.RETURN:
            return start, address
    return ()
