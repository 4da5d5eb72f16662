"""The report of a recorded session: what the replay found, with what the recording says of the run."""

from __future__ import annotations

from typing import Any

from gdbext.recording.reader import Recording
from gdbext.recording.replay import Replay
from gdbext.report.document import QemuFacts, RunReport


def report(replay: Replay) -> RunReport:
    """The report of a replay that has run: the live run's, if rules and profile are the live run's."""
    recording = replay.recording
    end = recording.end.end if recording.end is not None and recording.end.end is not None else {}
    return RunReport(
        guest=recording.header.guest,
        source=recording.header.source,
        qemu=_qemu(recording),
        counts=replay.engine.counts,
        lost=_number(end.get("events", {}), "lost"),
        seconds=float(_number(end, "seconds")) if end else replay.seconds,
        findings=replay.engine.findings,
        incomplete=recording.flaw,
    )


def _qemu(recording: Recording) -> QemuFacts | None:
    given = recording.header.qemu
    if given is None:
        return None
    return QemuFacts(str(given.get("version")), str(given.get("accel")), given.get("plugin_api"))


def _number(table: Any, name: str) -> Any:
    value = table.get(name) if isinstance(table, dict) else None
    return value if isinstance(value, int | float) else 0
