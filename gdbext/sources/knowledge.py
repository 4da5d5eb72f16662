"""What a profile adds to a live run: the rules' policy, the save areas to watch, the variables to track."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Protocol

from gdbext.errors import CtxwatchError
from gdbext.events.row import Batch, concat
from gdbext.profiles.expression import Expression, Scope
from gdbext.profiles.learn import Learnt
from gdbext.profiles.profile import Profile
from gdbext.rules.policy import Policy
from gdbext.sources.areas import AreaWatcher
from gdbext.sources.base import Source
from gdbext.sources.probe import ProbeSource, TrackedVariable


class Names(Protocol):
    """Where a symbol is."""

    def address(self, name: str) -> int | None:
        """The guest virtual address of `name`, or None."""


class Knowledge:
    """One profile at work. ``note`` is told, in one line each, what of it cannot be used."""

    def __init__(self, profile: Profile, symbols: Names, note: Callable[[str], None]) -> None:
        self.name = profile.name
        self._profile, self._symbols, self._note = profile, symbols, note
        self._areas: AreaWatcher | None = None
        self.policy: Policy = profile.policy(symbols.address, note)
        self._tracked: list[TrackedVariable] = []
        try:
            self._tracked = [_tracked(table.address, table.size, symbols) for table in profile.data.tracked]
        except (CtxwatchError, OSError) as error:
            note(f"profile {profile.name}: {error}: no variable is tracked")
            self.policy = replace(self.policy, tracked=())

    def attach(self, source: Source, code: Callable[[int, int], bytes], *, may_wait: bool = False) -> None:
        """Begin with `source`; `code` reads the guest's code bytes.

        may_wait: vCPUs may be made to wait at exits in the beginning; who reads `source` releases those that do.
        """
        probe = source if isinstance(source, ProbeSource) else None
        still = probe.still if probe is not None else nullcontext
        wait = probe.set_halt if probe is not None and may_wait else None
        under = probe.read_under if probe is not None else None
        self._areas = AreaWatcher(self._profile, source, self._symbols.address, self._note, code, still, wait, under)
        if self._tracked:
            if isinstance(source, ProbeSource):
                source.set_tracked(self._tracked)
            else:
                self._note(f"variables cannot be tracked through {source.name}: the rules that need them are off")
                self.policy = replace(self.policy, tracked=())

    def add_areas(self, batch: Batch) -> Batch:
        """`batch`, in front of it a row for each save area and each learnt slot that its entries let us find."""
        assert self._areas is not None, "not attached to a source"
        found = self._areas.look(batch)
        return concat([found, batch]) if len(found) else batch

    @property
    def learnt(self) -> Learnt | None:
        """What the guest's code says of its save areas, where the profile says nothing."""
        learner = self._areas.learner if self._areas is not None else None
        return learner.seen if learner is not None else None

    def follow(self, wanted: Mapping[int, int]) -> None:
        """Watch where the rules want to see stores (``Engine.wanted``), as far as the source can."""
        if wanted and self._areas is not None:
            self._areas.follow(wanted)


def _tracked(address: str, size: int, symbols: Names) -> TrackedVariable:
    expression = Expression(address)
    scope = Scope({"gs_base": 0}, symbols.address, _not_yet)
    return TrackedVariable(expression.evaluate(scope), size, gs="gs" in expression.names())


def _not_yet(address: int, length: int) -> bytes:
    raise OSError(f"the address of a tracked variable cannot be read from memory ({length} bytes at {address:#x})")
