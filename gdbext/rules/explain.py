"""Complete a finding with what the guest's code and the events before it say."""

from __future__ import annotations

from gdbext.arch import vectors
from gdbext.events.row import Kind
from gdbext.ledger.compare import is_call
from gdbext.rules.finding import Finding
from gdbext.rules.guest import GuestView
from gdbext.rules.history import History

_STALE = ("rflags", "fs_base")
"""Fields of which an old value is telling: they come from a slot that this save did not write."""


def complete(finding: Finding, guest: GuestView, history: History) -> None:
    """Add to ``finding.cause`` where the wrong value was seen before."""
    if finding.entry_row is None or finding.row is None:
        return
    for difference in finding.differences:
        if difference.field in _STALE:
            _say_when_seen(finding, difference.field, difference.actual, history)


def _say_when_seen(finding: Finding, field: str, value: int, history: History) -> None:
    assert finding.entry_row is not None
    seen = history.last_with(finding.entry_row, field, value)
    if seen is None:
        return
    since = history.before(finding.event)
    since = since[(since["kind"] == Kind.ENTRY) & (since["seq"] > seen["seq"][0])]
    what = "system call" if bool(is_call(seen)[0]) else vectors.name(int(seen["vector"][0]))
    finding.cause += (
        f". The value is the one this thread had at its {what} at event {int(seen['seq'][0])}, "
        f"{len(since)} entries before: the slot was not written since"
    )
