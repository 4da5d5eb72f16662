"""A verdict before it is a finding: the rule's own part, without place, names and code facts."""

from __future__ import annotations

from dataclasses import dataclass

from gdbext.events.row import Batch
from gdbext.rules.codes import ERROR
from gdbext.rules.finding import Difference, TableRow, Writer
from gdbext.rules.laststores import Write


@dataclass(frozen=True, slots=True)
class Draft:
    """code, one sentence of cause, one of what to look at, the differing fields, and how sure.

    blame: the event (a batch of one) at fault where it is not the judged one.  slot, writer: the place in the save
    area and who wrote it, or the store.  table: per slot its name, what it holds, what it should
    hold, and whose value that is.  rank: among the findings of one event, the cause (below 0) comes before what it
    shows in (0), and that before what follows from it (above 0).
    """

    code: str
    cause: str
    look_at: str
    differences: tuple[Difference, ...] = ()
    severity: str = ERROR
    match: str = "none"
    blame: Batch | None = None
    slot: str | None = None
    writer: Writer | Write | None = None
    table: tuple[TableRow, ...] = ()
    rank: int = 0


Judged = tuple[Draft, Batch, Batch | None]
"""A draft, the event it is about, and the ledger entry it was held against (batches of one)."""
