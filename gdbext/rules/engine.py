"""The engine: batches of events in, findings out, the same for a live guest, a replay and a single stop."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gdbext.events.columns import Columns, Rows
from gdbext.events.heap import keep_freed_memory
from gdbext.events.row import Batch, Flag, Kind
from gdbext.ledger.compare import contexts, is_call, is_user
from gdbext.rules import codes as code_table
from gdbext.rules import death, no_context
from gdbext.rules.again import CallAgainJudge
from gdbext.rules.areas import AreaJudge
from gdbext.rules.bycode import CodeJudge
from gdbext.rules.common_memory import CommonMemory
from gdbext.rules.convention import Convention
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.explain import Explainer
from gdbext.rules.far_returns import FarReturnJudge
from gdbext.rules.faulted_exit import FaultedExitJudge
from gdbext.rules.finding import Finding, Place, key
from gdbext.rules.gs import GsJudge
from gdbext.rules.guest import GuestView, NoGuest
from gdbext.rules.history import History
from gdbext.rules.kernel_base import KernelBaseJudge
from gdbext.rules.kernel_only import KernelOnly, KernelOnlyJudge
from gdbext.rules.landing import LandingJudge
from gdbext.rules.laststores import Write
from gdbext.rules.lazy_fpu import LazyFpuJudge
from gdbext.rules.linear import LinearWidth
from gdbext.rules.nesting import NestingJudge
from gdbext.rules.no_context import NoContextJudge
from gdbext.rules.nowhere import NowhereJudge
from gdbext.rules.policy import Policy
from gdbext.rules.resume import ResumeJudge
from gdbext.rules.scene import Scenes
from gdbext.rules.selectors import SelectorJudge
from gdbext.rules.shared_landing import SharedLandingJudge
from gdbext.rules.shared_stack import SharedStackJudge
from gdbext.rules.state import StateJudge
from gdbext.rules.stores import FrameStores
from gdbext.rules.storm import StormJudge
from gdbext.rules.suspended import SuspendedStackJudge
from gdbext.rules.switches import SwitchJudge
from gdbext.rules.taken_stack import TakenStackJudge
from gdbext.rules.tasks import TaskJudge
from gdbext.rules.unswapped_base import UnswappedBaseJudge
from gdbext.rules.writers import Writers, thread_of


class Judge(Protocol):
    """One family of rules."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge a batch whose rows are in order of ``seq``; the verdict must not depend on where batches are cut."""


@dataclass(slots=True)
class Counts:
    """What was seen, in events."""

    entries: int = 0
    exits: int = 0
    syscalls: int = 0
    swapgs: int = 0
    identical: int = 0
    unmatched: int = 0


class Engine:
    """Judges batches in order.

    policy: what the profile says.  codes: the codes to report (None: all).  guest: code bytes and names, for the
    explanation of a finding.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        codes: Collection[str] | None = None,
        guest: GuestView | None = None,
    ) -> None:
        keep_freed_memory()
        self.policy = policy or Policy()
        self.guest: GuestView = guest or NoGuest()
        self.counts = Counts()
        self.history = History()
        self._codes = code_table.select(codes)
        self._found: dict[tuple[object, ...], Finding] = {}
        self._areas_told: list[Batch] = []
        """The rows that say where save areas are, and what is kept where in them."""
        self._begin()

    def _begin(self) -> None:
        """Know nothing of what was interrupted before."""
        self._width = LinearWidth()
        self._common = CommonMemory()
        self._alone = KernelOnly()
        self._resume = ResumeJudge(self.policy, self.history, self._width)
        self._gs = GsJudge()
        self._landing = LandingJudge()
        self._areas = AreaJudge(self.policy)
        self._frames = FrameStores()
        self._writers = Writers(self.guest, self.history)
        convention = Convention(self.guest, self.history)
        self._explainer = Explainer(self.guest, self.history, self._areas, self._frames, self._writers, convention)
        self._scenes = Scenes(self.guest, self.history, self._areas)
        self._judges: tuple[Judge, ...] = (
            self._gs,
            KernelBaseJudge(self._gs, self._width, self.history),
            UnswappedBaseJudge(),
            self._resume,
            CallAgainJudge(self.history),
            FarReturnJudge(self.history),
            SelectorJudge(),
            NoContextJudge(),
            KernelOnlyJudge(self._alone),
            LazyFpuJudge(self._alone),
            SwitchJudge(convention),
            NowhereJudge(self.history, self.guest),
            FaultedExitJudge(self.history, self.guest),
            StormJudge(),
            SharedStackJudge(),
            TaskJudge(),
            NestingJudge(self.policy),
            self._landing,
            SharedLandingJudge(self._common),
            TakenStackJudge(self._common),
            SuspendedStackJudge(),
            StateJudge(self.policy),
            CodeJudge(self.guest),
            self._areas,
            self._frames,
        )
        self._before = self.counts.identical, self.counts.unmatched
        for told in self._areas_told:
            self._areas.feed(Columns(told))

    @property
    def findings(self) -> list[Finding]:
        """All findings so far, equal ones once with a count, in order of events; at one event the cause comes first."""
        return self._in_order({id(finding): finding for finding in self._found.values()}.values())

    def feed(self, batch: Rows) -> list[Finding]:
        """Judge `batch` (in order of ``seq``); return the findings that are the first of their kind."""
        if not len(batch):
            return []
        columns = batch if isinstance(batch, Columns) else Columns(np.ascontiguousarray(batch))
        kind = columns["kind"]
        told = np.flatnonzero((kind == Kind.AREA) | (kind == Kind.SLOT))
        if len(told):
            self._areas_told.append(columns.pick(told))
        new: list[Finding] = []
        start = 0
        for cut in np.flatnonzero(kind == Kind.RESTORED).tolist():
            new += self._feed(columns.take(np.arange(start, cut)))
            self._begin()
            start = cut
        return new + self._feed(columns.take(np.arange(start, len(columns))) if start else columns)

    def _feed(self, columns: Columns) -> list[Finding]:
        """Judge what comes of one and the same machine."""
        if not len(columns):
            return []
        self.history.begin(columns)
        self._count(columns)
        self._width.feed(columns)
        self._common.feed(columns)
        self._alone.feed(columns)
        self._scenes.feed(columns)
        judged = [item for judge in self._judges for item in judge.feed(columns)]
        judged += self._landing.explain(judged)
        judged += death.judge(columns, self.history)
        self.counts.identical = self._before[0] + self._resume.identical
        self.counts.unmatched = self._before[1] + self._resume.unmatched
        judged = _without_consequences(judged)
        judged.sort(key=lambda item: int(item[1]["seq"][0]))
        return self._collect(judged)

    @property
    def wanted(self) -> Mapping[int, int]:
        """Where the rules want to see stores from now on: first byte of each range, and the one behind it."""
        return self._frames.spans | self._areas.wanted

    def pending(self) -> Batch:
        """The contexts that wait to be resumed, oldest first."""
        return self._resume.pending()

    def _count(self, batch: Columns) -> None:
        rows = contexts(batch)
        entry = rows["kind"] == Kind.ENTRY
        entries = int(np.count_nonzero(entry))
        self.counts.entries += entries
        self.counts.exits += len(rows) - entries
        self.counts.syscalls += int(np.count_nonzero(entry & is_call(rows)))
        self.counts.swapgs += int(np.count_nonzero(batch["kind"] == Kind.SWAPGS))

    def _collect(self, judged: Iterable[Judged]) -> list[Finding]:
        """The findings that `judged` makes for the first time; those known are counted."""
        new: list[Finding] = []
        for draft, row, entry in judged:
            kind = _kind(draft, row, entry)
            known = self._found.get(kind)
            if known is None:
                finding = self._found[kind] = self._finding(draft, row, entry)
                extra = self._explainer.complete(finding)
                told = self._explainer.abi.told_before(finding)
                if told is not None:
                    self._found[kind] = told
                    told.count += 1
                    continue
                new += [finding, *self._collect((more, row, entry) for more in extra)]
                self._scenes.add(finding)
                self._share_writer(finding)
                continue
            known.count += 1
            more_to_say = self._explainer.could_say_more(known, int(row["seq"][0]))
            if not more_to_say and (known.writer is not None or draft.writer is None):
                continue
            finding = self._finding(draft, row, entry)
            if more_to_say:
                extra = self._explainer.complete(finding)
                if finding.writer is not None:
                    new += self._collect((more, row, entry) for more in extra)
            known.learn_writer(finding, draft.cause)
            self._share_writer(finding)
        return self._in_order(new)

    def _share_writer(self, finding: Finding) -> None:
        """Who overwrote one thread's frame is taken for who overwrote the same word of the others'."""
        if finding.code != "CW302":
            return
        alike = [f for f in self._found.values() if f.code == "CW302" and f.field == finding.field]
        for seen in [f for f in alike if f.writer is not None][:1]:
            for other in alike:
                other.learn_writer(seen)

    def _in_order(self, findings: Iterable[Finding]) -> list[Finding]:
        """Those of `findings` that were asked for, in order."""
        asked = (finding for finding in findings if finding.code in self._codes)
        return sorted(asked, key=lambda finding: (finding.event, finding.rank))

    def _finding(self, draft: Draft, row: Batch, entry: Batch | None) -> Finding:
        blamed = draft.blame if draft.blame is not None else row
        origin = entry if entry is not None else row
        rip = int(origin["rip"][0])
        user = bool(is_user(origin)[0])
        return Finding(
            code=draft.code,
            severity=draft.severity,
            event=int(blamed["seq"][0]),
            cpu=int(blamed["cpu"][0]),
            vector=int(origin["vector"][0]) if origin["kind"][0] == Kind.ENTRY else None,
            interrupted=Place(rip, self.guest.symbol(rip), 3 if user else int(origin["cs"][0]) & 3),
            pc=int(blamed["pc"][0]),
            pc_symbol=self.guest.symbol(int(blamed["pc"][0])),
            cause=draft.cause,
            look_at=draft.look_at,
            differences=draft.differences,
            match=draft.match,
            entry=int(entry["seq"][0]) if entry is not None else None,
            thread=thread_of(origin, user),
            bits=32 if origin["flags"][0] & Flag.LINEAR32 or origin["mode"][0] == 32 else 64,
            row=np.array(row),
            entry_row=np.array(entry) if entry is not None else None,
            handler=int(entry["pc"][0]) if entry is not None else 0,
            slot=draft.slot,
            writer=self._writers.of(draft.writer) if isinstance(draft.writer, Write) else draft.writer,
            table=draft.table,
            rank=draft.rank,
        )


def _without_consequences(judged: list[Judged]) -> list[Judged]:
    """What is not said of exits that pop no context, or one from beside its frame: all else follows from that.

    An exit that is known to resume a context pops one.
    """
    resumed = {int(row["seq"][0]) for _, row, entry in judged if entry is not None}
    judged = [item for item in judged if not no_context.says(item[0]) or int(item[1]["seq"][0]) not in resumed]
    for says_all in (lambda draft: draft.code == "CW301", no_context.says):
        events = {int(row["seq"][0]) for draft, row, _ in judged if says_all(draft)}
        judged = [item for item in judged if says_all(item[0]) or int(item[1]["seq"][0]) not in events]
    return judged


def _kind(draft: Draft, row: Batch, entry: Batch | None) -> tuple[object, ...]:
    """The key of the finding that this makes."""
    blamed = draft.blame if draft.blame is not None else row
    return key(draft.code, draft.differences, int(blamed["pc"][0]), int(entry["pc"][0]) if entry is not None else 0)
