"""Find the save areas of a live guest, have the source watch them, and tell the rules where they are.

What a profile (shipped, written or learnt) says is evaluated at entries from user mode: the running context's area by
its ``current`` expression, all areas by its ``[areas]`` table. Each new area becomes a row of kind AREA, so that a
recording replays with the same knowledge. An expression that reads unmapped memory, or an area outside memory, costs
that area alone and is said once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import numpy as np

from gdbext.errors import NotCapable, UsageError
from gdbext.events.row import Batch, Kind
from gdbext.ledger.compare import is_user
from gdbext.profiles.expression import Scope
from gdbext.profiles.profile import Profile
from gdbext.sources.base import Capability, Source

MAX_AREAS: Final = 256
"""Areas watched at most; each costs a check at every store into its page."""
EAGER: Final = 64
"""Looks without pause at the start; later ones are INTERVAL apart."""
INTERVAL: Final = 0.05
"""Seconds."""

SymbolAddress = Callable[[str], int | None]
Note = Callable[[str], None]


class AreaWatcher:
    """Keeps a source's watched ranges up to date."""

    def __init__(self, profile: Profile, source: Source, symbol: SymbolAddress, note: Note) -> None:
        self._profile = profile
        self._source = source
        self._symbol = symbol
        self._note = note
        self._told: set[str] = set()
        self._areas: dict[int, int] = {}
        self._looks = 0
        self._next = 0.0
        layout = profile.layout
        self._size = layout.size if layout else 0
        self._active = bool(self._size) and Capability.MEMORY in source.capabilities

    @property
    def areas(self) -> list[int]:
        """Start addresses of the areas found so far."""
        return list(self._areas)

    def look(self, batch: Batch) -> Batch:
        """Look for areas as the last entry from user mode of `batch` shows them; return a row for each new one."""
        entries = batch[(batch["kind"] == Kind.ENTRY) & is_user(batch)]
        if not self._active or not len(entries) or not self._due():
            return batch[:0]
        row = entries[-1:]
        found: list[int] = []
        for base in dict.fromkeys((int(row["kernel_gs_base"][0]), int(row["gs_base"][0]))):
            scope = self._scope(row, base)
            try:
                current = self._profile.current_area(scope)
            except OSError as error:
                self._say(
                    f"profile {self._profile.name}: [area] current: {error}: the running context's area is not watched"
                )
                continue
            except UsageError as error:
                self._say(f"profile {self._profile.name}: [area] current: {error}")
                break
            if current is not None and self._readable(current):
                found.append(current)
                break
        found += [a for a in self._profile.areas(self._scope(row, 0), self._say) if self._readable(a)]
        return self._watch([a for a in dict.fromkeys(found) if a not in self._areas], row)

    def _due(self) -> bool:
        self._looks += 1
        now = time.monotonic()
        if self._looks > EAGER and now < self._next:
            return False
        self._next = now + INTERVAL
        return len(self._areas) < MAX_AREAS

    def _scope(self, row: Batch, gs_base: int) -> Scope:
        names = [name for name in row.dtype.names or () if row.dtype[name].shape == ()]
        registers = {name: int(row[name][0]) for name in names if name not in ("kind", "how", "size", "mode")}
        if gs_base:
            registers["gs_base"] = gs_base
        cpu = int(row["cpu"][0])
        word = self._profile.data.bits // 8
        return Scope(registers, self._symbol, lambda at, n: self._source.read_memory(at, n, cpu), word)

    def _readable(self, start: int) -> bool:
        """True if the whole area is mapped; page 0 never holds one."""
        if start < 4096:
            return False
        try:
            return len(self._source.read_memory(start, self._size)) == self._size
        except OSError as error:
            self._say(f"profile {self._profile.name}: area at {start:#x} is not watched: {error}")
            return False

    def _watch(self, new: list[int], row: Batch) -> Batch:
        if not new:
            return row[:0]
        self._areas |= dict.fromkeys(new, self._size)
        if Capability.STORES in self._source.capabilities:
            try:
                self._source.set_watch([(start, start + size) for start, size in sorted(self._areas.items())])
            except NotCapable as error:
                self._say(str(error))
        rows = np.zeros(len(new), row.dtype)
        rows["kind"] = Kind.AREA
        for name in ("seq", "time", "cpu", "mode"):
            rows[name] = row[name][0]
        rows["addr"], rows["value"] = new, self._size
        return rows

    def _say(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._note(text)
