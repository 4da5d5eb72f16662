"""Far returns to interrupted kernel code that leave RFLAGS as they are: CW102.

``lret`` restores RIP and CS alone: RFLAGS must be put back in front of it. What they hold just then is not captured
whole, but whether anything (``popf``, ``sahf``) has loaded them since the handler was entered is.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.arch import vectors
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, How
from gdbext.ledger.compare import contexts, is_user
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.history import History

_INVISIBLE: Final = (How.INTERRUPT, How.EXCEPTION, How.NMI)


class FarReturnJudge:
    """Looks at the far returns that the probe has found to be without flags."""

    def __init__(self, history: History) -> None:
        self._history = history

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the far returns of a batch."""
        every = contexts(batch)
        rows = (every.row(at) for at in np.flatnonzero(every["how"] == How.FAR).tolist())
        return [judged for row in rows if row["value"][0] == 1 and not is_user(row)[0] for judged in self._judge(row)]

    def _judge(self, row: Batch) -> list[Judged]:
        past = self._history.before(int(row["seq"][0]))
        entry = past[past["seq"] == row["match"]]
        if not len(entry) or entry["how"][0] not in _INVISIBLE:
            return []
        cause = (
            f"RFLAGS are not put back: nothing has loaded them since {vectors.name(int(entry['vector'][0]))} came, and "
            "the far return by which its handler ends leaves them as they are"
        )
        look = "the path before this far return: popf must take the saved RFLAGS, as iret would have"
        found = (Difference("rflags", int(entry["rflags"][0]), int(row["rflags"][0])),)
        return [(Draft("CW102", cause, look, found, match="exact"), row.copy(), entry.copy())]
