"""What the report's page shows of a session, gathered in one pass: handlers, GS state, windows, counts and latencies.

Memory is bounded whatever the length of the session: beyond :data:`DETAIL` handlers only the surroundings of findings
are kept one by one, and the rest as counts in bins of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gdbext.arch import vectors
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, How, Kind
from gdbext.report.timeline import RESUMED, Slice, Stretch, Timeline

DETAIL: Final = 1_000_000
"""Handlers kept one by one, and as many stretches of GS state."""
RESERVE: Final = 200_000
"""How many more around findings that come later."""
BINS: Final = 2048
"""Bins of time over the whole session at most; there are half as many at least."""
CATEGORIES: Final = ("interrupt", "exception", "system call", "NMI", "resumed")
PER_OCTAVE: Final = 4
"""Bins of a latency histogram from one power of two to the next."""
_OCTAVES: Final = 44
_CALLS: Final = (How.SYSCALL, How.SYSENTER, How.SOFT)

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class Lane:
    """One CPU's time, all in nanoseconds since the session's first event.

    handlers: name of a :class:`Slice` field -> array, in order of ``start``; gs: start, end, state; windows: start,
    end; bins: handlers begun by category and bin, (len(CATEGORIES), BINS).
    """

    handlers: dict[str, npt.NDArray[Any]]
    gs: dict[str, Ints]
    windows: dict[str, Ints]
    bins: Ints


@dataclass(slots=True)
class Latency:
    """How long the handlers of one vector took from entry to resume, nanoseconds.

    counts: by bin; bin n begins at 2 ** (n / PER_OCTAVE).  entries: all, those included that were left another way.
    """

    entries: int = 0
    counts: Ints = field(default_factory=lambda: np.zeros(_OCTAVES * PER_OCTAVE, np.int64))
    longest: int = 0

    @property
    def resumed(self) -> int:
        """Entries whose context was resumed by the CPU's own exit."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """The latency that `share` of the handlers do not exceed, to within a bin."""
        reached = np.cumsum(self.counts)
        place = int(np.searchsorted(reached, share * reached[-1])) if reached[-1] else 0
        return min(bin_start(place + 1), float(self.longest))


def bin_start(place: int) -> float:
    """The shortest latency, in nanoseconds, of a histogram's bin."""
    return float(2.0 ** (place / PER_OCTAVE))


class Gatherer:
    """Takes the batches of a session; then :meth:`lanes` and the rest hold what the page shows."""

    def __init__(self) -> None:
        self.start = 0
        """Of the first event, nanoseconds of the host's monotonic clock."""
        self.span = 0
        """From the first event to the last."""
        self.events = 0
        self.latencies: dict[int, Latency] = {}
        self.gaps: list[tuple[int, int]] = []
        """Stretches of time of which handlers are only counted."""
        self.bin_width = 1024
        self._timeline = Timeline()
        self._handlers = _Kept(Slice._fields)
        self._gs = _Kept(Stretch._fields)
        self._windows = _Kept(Stretch._fields)
        self._bins: dict[int, Ints] = {}
        self._near = False

    def feed(self, batch: Batch, telling: bool) -> None:
        """Add a batch; `telling`: a finding was made in it."""
        if not len(batch):
            return
        if not self.events:
            self.start = int(batch["time"][0])
        since = self.span
        self.events += len(batch)
        self.span = max(self.span, int(batch["time"].max()) - self.start)
        slices, stretches, windows = self._timeline.feed(batch)
        self._count(Columns(batch))
        self._keep(slices, stretches, windows, telling or self._near, since)
        self._near = telling

    def finish(self) -> None:
        """The session has ended: add what was open."""
        self._keep(*self._timeline.finish(), True, self.span)

    def lanes(self) -> dict[int, Lane]:
        """What each CPU did."""
        handlers, gs, windows = self._handlers.columns(), self._gs.columns(), self._windows.columns()
        found = {}
        for cpu in sorted(self._bins):
            mine = _of(handlers, cpu)
            stretches, bare = _of(gs, cpu), _of(windows, cpu)
            found[cpu] = Lane(mine, stretches, {name: bare[name] for name in ("start", "end")}, self._bins[cpu])
        return found

    def _keep(
        self, slices: list[Slice], stretches: list[Stretch], windows: list[Stretch], telling: bool, since: int
    ) -> None:
        self._latency(slices)
        room = DETAIL + RESERVE * telling
        if max(len(self._handlers), len(self._gs), len(self._windows)) > room:
            if self.gaps and self.gaps[-1][1] >= since:
                since = self.gaps.pop()[0]
            self.gaps.append((since, self.span))
            return
        for kept, parts in ((self._handlers, slices), (self._gs, stretches), (self._windows, windows)):
            kept.add(parts, self.start)

    def _latency(self, slices: list[Slice]) -> None:
        done = [(item.vector, item.end - item.start) for item in slices if item.until]
        if not done:
            return
        vector, took = np.array(done, np.int64).T
        place = (np.log2(np.maximum(took, 1)) * PER_OCTAVE).astype(np.int64).clip(0, _OCTAVES * PER_OCTAVE - 1)
        for number in np.unique(vector).tolist():
            mine = vector == number
            latency = self.latencies.setdefault(number, Latency())
            latency.counts += np.bincount(place[mine], minlength=len(latency.counts))
            latency.longest = max(latency.longest, int(took[mine].max()))

    def _count(self, batch: Columns) -> None:
        """Entries by vector, and by CPU, category and bin of time."""
        chosen = batch.take(np.flatnonzero(batch["kind"] == Kind.ENTRY))
        vector = batch["vector"][batch["kind"] == Kind.ENTRY]
        for number, count in zip(*np.unique(vector, return_counts=True), strict=True):
            self.latencies.setdefault(int(number), Latency()).entries += int(count)
        while self.span >= BINS * self.bin_width:
            self.bin_width *= 2
            for cpu, bins in self._bins.items():
                self._bins[cpu] = _halved(bins)
        place = (chosen["time"].astype(np.int64) - self.start).clip(0) // self.bin_width
        category = _category(vector, chosen["how"])
        for cpu in np.unique(batch["cpu"]).tolist():
            bins = self._bins.setdefault(cpu, np.zeros((len(CATEGORIES), BINS), np.int64))
            mine = chosen["cpu"] == cpu
            np.add.at(bins, (category[mine], place[mine]), 1)


def category(vector: int) -> int:
    """Index into CATEGORIES of a handler's vector (an ``int n`` counts as an interrupt here)."""
    return int(_category(np.array([vector]), np.zeros(1))[0])


def _category(vector: npt.NDArray[Any], how: npt.NDArray[Any]) -> Ints:
    calls = np.isin(how, _CALLS) | (vector == vectors.SYSCALL) | (vector == vectors.SYSENTER)
    conditions = [vector == RESUMED, calls, vector == vectors.NMI, vector < 32]
    return np.select(conditions, [4, 2, 3, 1], 0).astype(np.int64)


def _halved(bins: Ints) -> Ints:
    """Two neighbours in one, the second half free."""
    half = np.zeros_like(bins)
    half[:, : BINS // 2] = bins[:, ::2] + bins[:, 1::2]
    return half


def _of(columns: dict[str, npt.NDArray[Any]], cpu: int) -> dict[str, npt.NDArray[Any]]:
    """The rows of one CPU, in order of their start; of two that start together the outer one first."""
    mine = np.flatnonzero(columns["cpu"] == cpu)
    order = mine[np.lexsort((-columns["end"][mine], columns["start"][mine]))]
    return {name: values[order] for name, values in columns.items() if name != "cpu"}


class _Kept:
    """Named tuples as columns."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._parts: list[list[npt.NDArray[Any]]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: Sequence[tuple[int, ...]], start: int) -> None:
        """Add rows; their times become relative to `start`."""
        if not rows:
            return
        self._count += len(rows)
        part = []
        for name, values in zip(self._names, zip(*rows, strict=True), strict=True):
            column = np.array(values, np.uint64 if name == "rip" else np.int64)
            part.append(column - start if name in ("start", "end") else column)
        self._parts.append(part)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """All rows, as one array a column."""
        if not self._parts:
            return {name: np.zeros(0, np.uint64 if name == "rip" else np.int64) for name in self._names}
        return {name: np.concatenate([part[place] for part in self._parts]) for place, name in enumerate(self._names)}
