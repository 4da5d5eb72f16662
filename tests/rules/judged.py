"""What the engine finds, however its rows are cut into batches."""

from __future__ import annotations

from gdbext.events.row import Batch
from gdbext.rules.engine import Engine
from gdbext.rules.finding import Finding
from tests.rules.rows import batch, stamp


def judged(*rows: Batch) -> list[Finding]:
    """What is found in `rows`, numbered in order: the same in one batch as row by row."""
    every, whole, single = stamp(batch(*rows)), Engine(), Engine()
    whole.feed(every)
    for at in range(len(every)):
        single.feed(every[at : at + 1])
    assert [_told(finding) for finding in whole.findings] == [_told(finding) for finding in single.findings]
    return whole.findings


def _told(finding: Finding) -> tuple[str, str | None, int, list[str]]:
    return finding.code, finding.field, finding.event, [difference.field for difference in finding.differences]
