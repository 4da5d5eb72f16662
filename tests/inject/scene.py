"""What a fault finds where it strikes: the guest held, its code followed, its paths by purpose."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from gdbext.arch import vectors
from gdbext.arch.vectors import is_exception
from gdbext.code.disasm import Code
from gdbext.code.paths import Entry, Gateway, Reach
from gdbext.events.row import How, Kind
from tests.inject import sites
from tests.inject.live import Live
from tests.inject.patch import Change, NotHere, Patcher
from tests.inject.sites import Move

INTERRUPT, SYSCALL, NMI = "interrupt", "syscall", "nmi"
"""Kinds of entry paths."""
USER, KERNEL = "user", "kernel"
"""Kinds of exit paths besides :data:`SYSCALL`: where an iret goes to."""


@dataclass(frozen=True, slots=True)
class Expect:
    """A verdict that fits: one of `codes`, whose fields hold all of `fields`; `alone`: and no other."""

    codes: tuple[str, ...]
    fields: frozenset[str] = field(default_factory=frozenset)
    alone: bool = False

    def __str__(self) -> str:
        if not self.codes:
            return "nothing"
        return "|".join(self.codes) + (f" {','.join(sorted(self.fields))}" if self.fields else "")


@dataclass(frozen=True, slots=True)
class Injection:
    """What was done to the guest, and what the rules must say of it."""

    change: Change
    expect: Expect


class Scene:
    """A guest that is held."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.stub = live.stub
        self.word = live.bits // 8
        self.struck = 0
        """The last event before the first change."""

    @cached_property
    def code(self) -> Code:
        """The code before anything is changed."""
        return Code(self.live.read, self.live.bits)

    @cached_property
    def reach(self) -> Reach:
        """What the handlers seen reach."""
        return sites.reached(self.code, self.live.handlers.all)

    @cached_property
    def patch(self) -> Patcher:
        """Changes code."""
        return Patcher(self.live, self.reach)

    def stores(self, path: str) -> list[Move]:
        """The save on the entry path that is taken most; the last store of each field."""
        found = {move.field: move for move in sites.stores(self.code, self._entry(path))}
        return sorted(found.values(), key=lambda move: move.insn.address)

    def _entry(self, path: str) -> Entry:
        def fits(entry: Entry) -> bool:
            if entry.soft or entry.gateway is not Gateway.INTERRUPT:
                return path == SYSCALL
            kind = NMI if entry.vector == vectors.NMI else INTERRUPT if not is_exception(entry.vector) else ""
            return path == kind

        seen = [entry for entry in self.live.handlers.all if fits(entry) and self.live.entries[entry.address]]
        if not seen:
            raise NotHere(f"no {path} was seen")
        return max(seen, key=lambda entry: self.live.entries[entry.address])

    def leaving(self, path: str) -> int:
        """The address of the exit that is taken most to user code, kernel code, or from a fast system call."""
        exits = {
            pc: count
            for (pc, how, user), count in self.live.exits.items()
            if (how != How.IRET) == (path == SYSCALL) and user == (path != KERNEL) and self._known(pc)
        }
        if not exits:
            raise NotHere(f"no exit of the kind {path} was seen")
        return max(exits, key=exits.__getitem__)

    def switches_too(self, path: str) -> bool:
        """True if threads that switched voluntarily are resumed by the same exit."""
        return self.leaving(path) in self.live.switches[1]

    def _known(self, pc: int) -> bool:
        return any(leaving.address == pc for leaving in self.reach.exits)

    def loads(self, path: str) -> list[Move]:
        """The restore before such an exit, in order of address: the longest run on that way, and what follows it."""
        leaving = self.leaving(path)
        runs = sites.loads(self.code, self.reach, leaving)
        swaps = {at for at, beside, _ in self.live.swaps if beside == Kind.EXIT}
        if path != SYSCALL and swaps:  # else both ways are one
            runs = [run for run in runs if bool(self._forward(run[-1].insn.end, leaving) & swaps) == (path == USER)]
        if not runs:
            raise NotHere(f"no restore was found before the exit at {leaving:#x}")
        longest = max(runs, key=len)
        after = self._forward(longest[-1].insn.end, leaving)
        found = {move.field: move for move in longest}
        for run in runs:
            if run[0].insn.address in after:
                found = {move.field: move for move in run} | found
        return sorted(found.values(), key=lambda move: move.insn.address)

    def _forward(self, start: int, leaving: int) -> set[int]:
        seen, work = set[int](), [start]
        while work and len(seen) < 200:
            at = work.pop()
            if at not in seen and at != leaving:
                seen.add(at)
                work += self.reach.successors.get(at, ())
        return seen

    def read(self, address: int, length: int) -> bytes:
        """Guest virtual memory of the vCPU that is selected."""
        return self.stub.read(address, length)

    def named(self, address: int, before: str, after: str) -> Change:
        """A change, made just now, of a value at the instruction at `address`."""
        self.live.catch_up()
        self.struck = self.struck or self.live.last_seq
        return Change(address, self.live.symbol(address) or "", (before,), (after,))


def the(moves: list[Move], name: str) -> Move:
    """The move of `name`; raises NotHere."""
    for move in moves:
        if move.field == name:
            return move
    raise NotHere(f"no instruction of this path moves {name}")
