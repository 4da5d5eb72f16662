"""Judging a recording: the same rules over the same events with the same answers from the guest."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from gdbext.events.columns import Columns
from gdbext.recording.reader import Recording
from gdbext.rules.engine import Engine
from gdbext.rules.finding import Finding
from gdbext.rules.policy import Policy


class Replay:
    """One pass of the rules over a recording.

    policy, codes: instead of those of the live run.  max_findings: stop after so many different ones; 0: never.
    """

    def __init__(
        self,
        recording: Recording,
        policy: Policy | None = None,
        codes: Collection[str] | None = None,
        max_findings: int = 0,
    ) -> None:
        header = recording.header
        self.recording = recording
        self.engine = Engine(
            policy if policy is not None else header.policy,
            codes=codes if codes is not None else header.codes,
            guest=recording.guest,
        )
        self.stopped = False
        """Whether `max_findings` ended it before the recording did."""
        self.seconds = 0.0
        """From the first event to the last."""
        self._max = max_findings

    def steps(self) -> Iterator[tuple[Columns, list[Finding]]]:
        """Each batch, judged, with the findings that are the first of their kind."""
        start: int | None = None
        for batch in self.recording.columns():
            if len(batch):
                start = int(batch["time"][0]) if start is None else start
                self.seconds = max(self.seconds, (int(batch["time"][-1]) - start) / 1e9)
            yield batch, self.engine.feed(batch)
            if 0 < self._max <= len(self.engine.findings):
                self.stopped = True
                return

    def run(self) -> Engine:
        """Go through all of it and return the engine with its findings and counts."""
        for _ in self.steps():
            pass
        return self.engine
