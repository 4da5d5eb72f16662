"""Save areas as a person looks at them in GDB: found by the profile or by hand, shown slot by slot, watched by hardware
watchpoints."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import gdb

from gdbext.errors import CtxwatchError, UsageError
from gdbext.gdb.guest import address_of, named
from gdbext.gdb.target import Target
from gdbext.profiles.expression import Expression, Scope
from gdbext.profiles.profile import Profile
from gdbext.rules.policy import Layout

MAX_WATCHED: Final = 4
"""An x86 CPU's debug registers; beyond them GDB would step the guest instruction by instruction."""
HISTORY: Final = 256


@dataclass(frozen=True, slots=True)
class Store:
    """A store that a watchpoint saw: where the guest stood behind it, and what the slot held then."""

    pc: int
    value: int


@dataclass(slots=True)
class Slot:
    """One slot of an area: its name, address, value (None: unreadable), and the value when it was last shown."""

    name: str
    address: int
    value: int | None
    before: int | None

    @property
    def changed(self) -> bool:
        """True if it was shown before with another value."""
        return self.before is not None and self.value != self.before


class SlotPoint(gdb.Breakpoint):  # type: ignore[misc]  # GDB's classes have no types
    """A hardware watchpoint on one slot that notes each store and lets the guest go on."""

    def __init__(self, target: Target, address: int, word: int) -> None:
        kind = "unsigned long long" if word == 8 else "unsigned int"
        super().__init__(f"*({kind} *){address:#x}", gdb.BP_WATCHPOINT, gdb.WP_WRITE, internal=True)
        self.silent = True
        self._target, self._address, self._word = target, address, word
        self.stores: deque[Store] = deque(maxlen=HISTORY)

    def stop(self) -> bool:
        """Called by GDB behind the storing instruction; the guest goes on."""
        try:
            value = int.from_bytes(self._target.read(self._address, self._word), "little")
            self.stores.append(Store(int(gdb.newest_frame().pc()), value))
        except (OSError, gdb.error):
            pass  # gone in between: there is nothing to note
        return False


@dataclass(slots=True)
class Areas:
    """What is known of save areas in this GDB. ``added``: start addresses given by hand."""

    added: list[int] = field(default_factory=list)
    shown: dict[int, dict[str, int]] = field(default_factory=dict)
    points: dict[tuple[int, str], SlotPoint] = field(default_factory=dict)

    def known(self, profile: Profile, target: Target) -> tuple[list[int], list[str]]:
        """(start addresses: the current one first, then the profile's list, those added, those shown before; what of
        the profile cannot be used)."""
        scope, notes = scope_at(target, profile), list[str]()
        found: list[int] = []
        try:
            current = profile.current_area(scope)
            found += [current] if current else []
        except (OSError, UsageError) as error:
            notes.append(f"[area] current = {profile.current!r}: {error}")
        found += profile.areas(scope, notes.append)
        return list(dict.fromkeys([*found, *self.added, *self.shown])), notes

    def add(self, text: str, profile: Profile, target: Target) -> int:
        """Add the area at the address that the expression `text` gives; raises UsageError if it is no area."""
        try:
            start = Expression(text).evaluate(scope_at(target, profile))
            target.read(start, layout_of(profile).size)
        except OSError as error:
            raise UsageError(f"no save area at {text}", str(error), "give the address of mapped memory") from None
        if start not in self.added:
            self.added.append(start)
        return start

    def slots(self, start: int, profile: Profile, target: Target) -> list[Slot]:
        """The slots of the area at `start` in order of address, beside what they held when they were last shown."""
        layout = layout_of(profile)
        before, now = self.shown.get(start, {}), dict[str, int]()
        rows = []
        for name, at in sorted(layout.slots.items(), key=lambda item: item[1]):
            with contextlib.suppress(OSError):
                now[name] = int.from_bytes(target.read(start + at, layout.word), "little")
            rows.append(Slot(name, start + at, now.get(name), before.get(name)))
        self.shown[start] = now
        return rows

    def watch(self, start: int, name: str, profile: Profile, target: Target) -> None:
        """Put a hardware watchpoint on a slot; raises UsageError for one that is not there or one too many."""
        layout = layout_of(profile)
        if name not in layout.slots:
            raise UsageError(f"no slot {name!r}", todo=f"slots are {', '.join(layout.slots)}")
        if (start, name) in self.points:
            return
        if len(self.points) >= MAX_WATCHED:
            raise UsageError(f"{MAX_WATCHED} slots are watched", "a CPU has no more debug registers", "ctx tcb unwatch")
        try:
            self.points[start, name] = SlotPoint(target, start + layout.slots[name], layout.word)
        except gdb.error as error:
            raise CtxwatchError(f"slot {name} cannot be watched", str(error)) from error

    def unwatch(self, start: int | None = None, name: str | None = None) -> int:
        """Remove watchpoints: all, those of an area, or one; how many."""
        chosen = [key for key in self.points if start in (None, key[0]) and name in (None, key[1])]
        for key in chosen:
            point = self.points.pop(key)
            if point.is_valid():
                point.delete()
        return len(chosen)

    def history(self, start: int, name: str) -> list[str]:
        """The stores into a watched slot, oldest first, a line each; raises UsageError for one that is not watched."""
        point = self.points.get((start, name))
        if point is None:
            raise UsageError(f"slot {name} at {start:#x} is not watched", todo=f"use ctx tcb watch {name} first")
        return [f"{store.value:#x} stored before {named(store.pc)}" for store in point.stores]


def layout_of(profile: Profile) -> Layout:
    """The profile's layout; raises CtxwatchError if it knows none."""
    if profile.layout is None:
        raise CtxwatchError(
            f"the profile {profile.name} knows no save area",
            todo="choose another with ctx profile, or derive one with `ctxwatch learn`",
        )
    return profile.layout


def scope_at(target: Target, profile: Profile) -> Scope:
    """Where expressions are evaluated: the registers as they are now, with the kernel's GS base for user code."""
    registers = dict(target.registers())
    if registers.get("cs", 0) & 3 and registers.get("kernel_gs_base"):
        registers["gs_base"] = registers["kernel_gs_base"]
    return Scope(registers, address_of, target.read, profile.data.bits // 8)
