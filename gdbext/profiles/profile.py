"""A profile at work: the shipped ones by name, a file by path; policy, areas and tracked variables of a live guest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from gdbext.arch.addresses import MASK64
from gdbext.errors import UsageError, printable
from gdbext.profiles.expression import Expression, Scope
from gdbext.profiles.schema import AreasTable, CallsTable, ProfileFile, TrackedTable, load, parse, rule_parts, shipped
from gdbext.rules.policy import Calls, Implication, Layout, Policy, Tracked

Note = Callable[[str], None]
"""Told, in one line, what of a profile could not be used; watching goes on without it."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One kernel's profile."""

    data: ProfileFile

    @property
    def name(self) -> str:
        """The name by which it is chosen."""
        return self.data.name

    def policy(self, symbol: Callable[[str], int | None] = lambda _: None, note: Note = lambda _: None) -> Policy:
        """The rules' policy; `symbol` gives the address of a function for the allowed writers."""
        given = self.data.policy
        return Policy(
            syscall_returns=frozenset(given.syscall_returns),
            user_iopl=given.user_iopl,
            vm86=given.vm86,
            nested_nmi=given.nested_nmi,
            user_redirects=given.user_redirects,
            replaces_own=_calls(given.replaces_own),
            edits_others=_calls(given.edits_others),
            names_aborts=_calls(given.names_aborts),
            tracked=tuple(_tracked(table) for table in self.data.tracked),
            layout=self.layout,
            writers=self._writers(symbol, note),
        )

    @property
    def layout(self) -> Layout | None:
        """The save area's layout, None where the profile knows none."""
        area = self.data.area
        return (
            None if area is None else Layout({str(name): at for name, at in area.slots.items()}, area.size, area.word)
        )

    @property
    def current(self) -> str:
        """The expression for the interrupted context's area, "" if the profile has none."""
        return (self.data.area.current or "") if self.data.area is not None else ""

    @property
    def below_pointer(self) -> int:
        """Bytes by which the current area lies below a pointer in memory; 0 if it is not found so."""
        return Expression(self.current).below_pointer if self.current else 0

    def current_area(self, scope: Scope) -> int | None:
        """Address of the running thread's save area, or None if the profile does not say how to find it."""
        area = self.data.area
        return None if area is None or area.current is None else Expression(area.current).evaluate(scope)

    def areas(self, scope: Scope, note: Note) -> list[int]:
        """Addresses of all save areas that can be found; what cannot is told through `note`."""
        table = self.data.areas
        found: list[int] = []
        if table is None:
            return found
        try:
            for address in _walk(table, scope, lambda text: note(f"profile {self.name}: {text}")):
                found.append(address)
        except (OSError, UsageError) as error:
            note(f"profile {self.name}: [areas] {table.kind}: {error}: {len(found)} areas are watched")
        return found

    def _writers(self, symbol: Callable[[str], int | None], note: Note) -> tuple[tuple[int, int], ...] | None:
        table = self.data.writers
        if table is None:
            return None
        nothing = Scope({}, symbol, _unmapped, self.data.bits // 8)
        ranges = [
            (Expression(start).evaluate(nothing), Expression(end).evaluate(nothing)) for start, end in table.ranges
        ]
        for name in table.symbols:
            start = symbol(name)
            if start is None:
                note(f"profile {self.name}: writer {printable(name)} is not a symbol of this kernel")
            else:
                ranges.append((start, start))
        return tuple(ranges)


def find(name_or_path: str) -> Profile:
    """The shipped profile of that name, or the profile in that file; raises UsageError."""
    text = shipped(name_or_path)
    if text is not None:
        return Profile(parse(text, f"{name_or_path}.toml"))
    path = Path(name_or_path)
    if "/" not in name_or_path and not os.path.exists(path):
        raise UsageError(
            f"no profile {name_or_path!r}", todo=f"shipped are {', '.join(shipped_names())}; or name a file"
        )
    return Profile(load(path))


def shipped_names() -> list[str]:
    """Names of the shipped profiles."""
    files: Iterable[str] = (entry.name for entry in resources.files(__package__).iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def _calls(table: CallsTable) -> Calls:
    return Calls(tuple(table.native), tuple(table.ia32))


def _tracked(table: TrackedTable) -> Tracked:
    mask = (1 << 8 * table.size) - 1 if table.mask is None else table.mask
    rules = tuple(Implication(*rule_parts(text)) for text in table.rules)
    return Tracked(table.name, mask & MASK64, table.preserved, rules)


def _walk(table: AreasTable, scope: Scope, note: Note) -> Iterator[int]:
    """Every area of the table, bounded; a list that loops or is too long is cut, and said so."""
    if table.kind == "fixed":
        for text in table.addresses:
            yield Expression(text).evaluate(scope) + table.offset
    elif table.kind == "array":
        base = Expression(table.base or "0").evaluate(scope)
        for index in range(table.count or 0):
            yield base + index * (table.stride or 0) + table.offset
    else:
        address, seen = Expression(table.head or "0").evaluate(scope), set[int]()
        while address and address not in seen:
            if len(seen) >= table.limit:
                note(f"[areas] list is longer than its limit of {table.limit}: the rest is not watched; raise limit")
                return
            seen.add(address)
            yield address + table.offset
            address = int.from_bytes(scope.read(address + (table.next or 0), scope.word), "little")
        if address and len(seen) > 1 and address != next(iter(seen)):
            note(
                f"[areas] list loops back to {address:#x} after {len(seen)} areas: those are watched; correct next, or "
                "the kernel's list is damaged"
            )


def _unmapped(address: int, length: int) -> bytes:
    raise OSError(f"{length} bytes at {address:#x} cannot be read before the guest runs")
