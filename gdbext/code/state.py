"""The state of the abstract machine: registers and memory as values whose origin is known.

Memory reached through different origins is taken not to overlap, which holds for stacks, per-CPU blocks and save
areas.
"""

from __future__ import annotations

from collections.abc import Iterator

from gdbext.arch.registers import GPR64, SEGMENTS
from gdbext.code.values import MAX_DEPTH, Atom, Half, Loaded, Place, Result, Start, Value, depth, wrap

Region = dict[int, tuple[int, Value]]
"""Displacement → (size, value): what was written through one origin."""


class State:
    """Registers (general, selectors, ``rflags``, ``fs_base``, ``gs_base``, ``kernel_gs_base``, ``simd``, ``xmmN``)
    and the memory written so far.

    ``origin``: ``user`` or ``kernel`` once a branch on the saved CS has told; ``if_zero``: what ZF set would tell, if
    the last test was one of the saved CS; ``zero``: ZF, if the last test was one of a constant; ``overwritten``:
    place → the interrupted field that another one replaced there, off the stack; ``at``: the instruction being
    executed; ``stored_by``: place → the one that stored there last; ``called_on``: the stacks, as (segment, origin), on
    which compiled code was called.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.word = 8 if bits == 64 else 4
        names = (*GPR64, *SEGMENTS, "rflags", "fs_base", "gs_base", "kernel_gs_base", "cr3", "simd")
        self.regs: dict[str, Value] = {name: Value(Start(name)) for name in names}
        self.memory: dict[tuple[str, Atom | None], Region] = {}
        self.overwritten: dict[Place, str] = {}
        self.at = 0
        self.stored_by: dict[Place, int] = {}
        self.called_on: set[tuple[str, Atom | None]] = set()
        self.origin = ""
        self.if_zero = ""
        self.zero: bool | None = None

    def copy(self) -> State:
        """An independent copy."""
        other = State.__new__(State)
        other.bits, other.word, other.origin, other.if_zero = self.bits, self.word, self.origin, self.if_zero
        other.zero = self.zero
        other.regs = dict(self.regs)
        other.overwritten = dict(self.overwritten)
        other.at, other.stored_by, other.called_on = self.at, dict(self.stored_by), set(self.called_on)
        other.memory = {key: dict(region) for key, region in self.memory.items()}
        return other

    @property
    def rsp(self) -> Value:
        """The stack pointer."""
        return self.regs["rsp"]

    def stack_place(self, offset: int = 0) -> Place:
        """The place `offset` bytes above RSP."""
        return self.place_of(self.rsp.plus(offset, self.bits))

    def place_of(self, address: Value, segment: str = "") -> Place:
        """The place that `address` points to; through the active GS base it is ``gs:``."""
        gs = self.regs["gs_base"]
        if not segment and address.atom is not None and address.atom == gs.atom and gs.disp == 0:
            return Place("gs", None, wrap(address.disp, self.bits, signed=False))
        return Place(segment, address.atom, address.disp)

    def load(self, place: Place, size: int, at: int = 0) -> Value:
        """`size` bytes at `place`: what was stored, else what had been there. ``at``: the loading instruction."""
        region = self.memory.get((place.segment, place.atom), {})
        known = region.get(place.disp)
        if known is not None:
            stored, value = known
            if stored == size or (stored > size and _fits(value, size)):
                return value
            high = region.get(place.disp + stored)
            if size == 2 * stored and high is not None and _halves(value, high[1]):
                return Value(value.atom.whole) if isinstance(value.atom, Half) else value
            return Value(Result(at, "memory"))
        if any(d < place.disp + size and place.disp < d + s for d, (s, _) in region.items()):
            return Value(Result(at, "memory"))
        if depth(place.atom) >= MAX_DEPTH:
            return Value(Result(at, "memory"))
        return Value(Loaded(place, size))

    def store(self, place: Place, size: int, value: Value) -> None:
        """Put `value` at `place`; what it overlaps is gone."""
        region = self.memory.setdefault((place.segment, place.atom), {})
        for disp in [d for d, (s, _) in region.items() if d < place.disp + size and place.disp < d + s]:
            before = region.pop(disp)[1].context
            if before and value.context not in ("", before) and place.atom != self.rsp.atom:
                self.overwritten[place] = before
        region[place.disp] = (size, value)
        self.stored_by[place] = self.at

    def push(self, value: Value, size: int) -> None:
        """Push `size` bytes."""
        self.regs["rsp"] = self.rsp.plus(-size, self.bits)
        self.store(self.stack_place(), size, value)

    def pop(self, size: int, at: int) -> Value:
        """Pop `size` bytes; ``at``: the popping instruction."""
        value = self.load(self.stack_place(), size, at)
        self.regs["rsp"] = self.rsp.plus(size, self.bits)
        return value

    def stored(self) -> Iterator[tuple[Place, int, Value]]:
        """(place, size, value) of all that was written, without what lies below RSP on the current stack."""
        top = self.stack_place()
        for (segment, atom), region in self.memory.items():
            for disp, (size, value) in region.items():
                if (segment, atom) == (top.segment, top.atom) and disp < top.disp:
                    continue
                yield Place(segment, atom, disp), size, value

    def leave_stack(self) -> None:
        """Forget what lies below RSP: nothing on the stack being left can be reached any more."""
        top = self.stack_place()
        region = self.memory.get((top.segment, top.atom))
        if region:
            for disp in [d for d in region if d < top.disp]:
                del region[disp]


def _fits(value: Value, size: int) -> bool:
    """True if `size` bytes hold all of `value`: selectors fit in two."""
    if value.atom is None:
        return value.disp < 1 << 8 * size
    return size >= 2 and value.context in SEGMENTS


def _halves(low: Value, high: Value) -> bool:
    return isinstance(low.atom, Half) and high == Value(Half(low.atom.whole, True))
