"""What the extension told last: the state for the status line, and the findings, which outlive GDB and the guest."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Facts:
    """The guest's state as of the last answer. ``parity``: user, kernel, unknown or "" where nothing is known;
    ``window``: the reason of the window the guest stands in, or ""; ``rate``: events a second."""

    watching: str = "no"
    cpu: int | None = None
    cpl: int | None = None
    parity: str = ""
    window: str = ""
    half_switched: str = ""
    events: int = 0
    findings: int = 0
    rate: float = 0.0
    pc: int | None = None
    _at: float = field(default=0.0, repr=False)

    def take(self, answer: Mapping[str, Any], now: float | None = None) -> None:
        """Note the answer to ``-ctx-state`` (GDB gives numbers as text); `now`: seconds of any steady clock."""
        now = time.monotonic() if now is None else now
        events = _number(answer.get("events")) or 0
        if self._at and now > self._at:
            self.rate = max(0, events - self.events) / (now - self._at)
        self._at, self.events = now, events
        self.watching = str(answer.get("watching", "no"))
        self.findings = _number(answer.get("findings")) or 0
        self.cpu, self.cpl = _number(answer.get("cpu")), _number(answer.get("cpl"))
        self.pc = _number(answer.get("pc"))
        self.parity = str(answer.get("parity", ""))
        self.window = str(answer.get("window", ""))
        self.half_switched = str(answer.get("half_switched", ""))

    def forget_place(self) -> None:
        """The guest runs or is gone: where it stood no longer holds."""
        self.cpl = self.pc = None
        self.window = self.half_switched = ""

    def lost(self) -> None:
        """There is no guest any more."""
        self.forget_place()
        self.cpu, self.parity, self.rate, self.watching, self._at = None, "", 0.0, "no", 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One finding as the extension told it. ``picture``: drawn for a terminal, with colours."""

    code: str
    name: str
    event: int
    count: int
    lines: tuple[str, ...]
    picture: str


class Findings:
    """The findings of this REPL's life: those of the watch at hand, and of the ones before."""

    def __init__(self) -> None:
        self._watches: dict[tuple[int, str], list[Seen]] = {}
        self._gdb = 0
        self._now = (0, "")

    def take(self, answer: Mapping[str, Any]) -> None:
        """Note the answer to ``-ctx-findings``, which tells of one watch."""
        self._now = self._gdb, str(answer.get("watch", ""))
        self._watches[self._now] = [_seen(one) for one in answer.get("findings", []) if isinstance(one, dict)]

    def another_gdb(self) -> None:
        """What is told from now on is told by another GDB, whose watches are others."""
        self._gdb += 1
        self._now = self._gdb, ""

    def all(self) -> list[Seen]:
        """All of them, in order."""
        return [one for told in self._watches.values() for one in told]

    @property
    def current(self) -> list[Seen]:
        """Those of the watch at hand."""
        return list(self._watches.get(self._now, ()))

    def __len__(self) -> int:
        return sum(map(len, self._watches.values()))


def _seen(answer: Mapping[str, Any]) -> Seen:
    return Seen(
        code=str(answer.get("code", "")),
        name=str(answer.get("name", "")),
        event=_number(answer.get("event")) or 0,
        count=_number(answer.get("count")) or 1,
        lines=tuple(map(str, answer.get("lines", ()))),
        picture=str(answer.get("picture", "")),
    )


def _number(value: object) -> int | None:
    try:
        return int(str(value), 0)
    except ValueError:
        return None
