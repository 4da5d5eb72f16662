"""Judging the events of a watch: the profile's areas in front, the rules, and the recording if one is made."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gdbext.events.row import Batch
from gdbext.report.document import QemuFacts, RunReport
from gdbext.rules.engine import Counts, Engine
from gdbext.rules.finding import Finding
from gdbext.rules.guest import GuestView
from gdbext.sources.base import Source
from gdbext.sources.knowledge import Knowledge

if TYPE_CHECKING:
    from gdbext.recording.writer import Recorder


_NUMBERS: Final = itertools.count(1)


class Judging:
    """An engine at work, and the recording of what it judges.

    guest: memory and names for the rules.  knowledge: the profile, None to assume nothing.  codes: those to report.
    tell: called with each new finding, from the thread that feeds.  may_wait: vCPUs may be made to wait in the
    beginning; who feeds releases those that do.
    """

    def __init__(
        self,
        source: Source,
        guest: GuestView,
        knowledge: Knowledge | None,
        codes: Collection[str] | None,
        tell: Callable[[Finding], None],
        *,
        may_wait: bool = False,
    ) -> None:
        self.number = next(_NUMBERS)
        """Tells it from all others of this GDB."""
        self._source, self._guest = source, guest
        self._knowledge, self._codes = knowledge, codes
        self._tell, self._may_wait = tell, may_wait
        self._before: list[Finding] = []
        self._notes: list[dict[str, object]] = []
        self._recorder: Recorder | None = None
        self._began = time.monotonic()
        self.engine = self._begin(guest)

    @property
    def findings(self) -> list[Finding]:
        """All findings of the watch, in order of events."""
        return [*self._before, *self.engine.findings]

    @property
    def counts(self) -> Counts:
        """What was seen, since the recording began if one is made."""
        return self.engine.counts

    @property
    def recording(self) -> Path | None:
        """The recording that is made now, or None."""
        return self._recorder.path if self._recorder is not None else None

    @property
    def recordings(self) -> tuple[Path, ...]:
        """The files that belong to the recording being made: what it will be called, and is called now."""
        return (self._recorder.path, self._recorder.partial) if self._recorder is not None else ()

    def feed(self, batch: Batch) -> list[Finding]:
        """Judge a batch; return the findings that are the first of their kind."""
        if self._knowledge is not None:
            batch = self._knowledge.add_areas(batch)
        found = self.engine.feed(batch)
        if self._knowledge is not None:
            self._knowledge.follow(self.engine.wanted)
        if self._recorder is not None:
            self._recorder.write(batch)
        for finding in found:
            self._tell(finding)
        return found

    def record(self, path: Path, guest: str, names: GuestView, qemu: QemuFacts, note: Callable[[str], None]) -> None:
        """Record from now on. The rules begin anew, so that a replay finds what they find from here.

        guest: what it is called.  names: a view of the guest that the recorder's thread may ask, too.  Raises
        UsageError where the file cannot be made.
        """
        from dataclasses import asdict

        from gdbext.recording.header import Header
        from gdbext.recording.writer import Recorder

        knowledge = self._knowledge
        header = Header(
            guest=guest,
            source=self._source.name,
            qemu=asdict(qemu),
            profile=knowledge.name if knowledge is not None else "",
            policy=self.engine.policy,
            codes=frozenset(self._codes) if self._codes is not None else None,
            started=time.time(),
        )
        recorder = Recorder(path, header, names, note)
        self._notes = []
        self._before = self.findings
        self._report = RunReport(guest, self._source.name, qemu)
        self._began = time.monotonic()
        self._recorder = recorder
        self.engine = self._begin(recorder.guest)

    def note(self, what: str) -> None:
        """Keep in the recording, if one is made, what was done to the safety mode after so many events."""
        seen = self.engine.counts
        self._notes.append({"events": seen.entries + seen.exits + seen.swapgs, "what": what})

    def end_recording(self) -> Path | None:
        """Close the recording; where it is now (under its incomplete name if something failed), None without one."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return None
        report = self._report
        report.counts, report.findings = self.engine.counts, self.engine.findings
        report.lost, report.seconds = self._source.lost, time.monotonic() - self._began
        result = report.document() | ({"safety": self._notes} if self._notes else {})
        return recorder.path if recorder.close(result) else recorder.partial

    def _begin(self, guest: GuestView) -> Engine:
        policy = None
        if self._knowledge is not None:
            self._knowledge.attach(self._source, self._guest.read, may_wait=self._may_wait)
            policy = self._knowledge.policy
        return Engine(policy, codes=self._codes, guest=guest)
