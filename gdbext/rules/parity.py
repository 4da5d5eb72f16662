"""GS parity by count: which of user and kernel GS is active at each event, per CPU, on columns.

CPL 3 means the user's base is active; each ``swapgs`` since then toggles. Values are never looked at: a kernel that
loads both MSRs with the same address hides a wrong swap from anything that compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gdbext.events.columns import Columns, by_cpu
from gdbext.events.row import Kind
from gdbext.ledger.compare import Bools, is_user

UNKNOWN, USER, KERNEL = -1, 0, 1

Parity = npt.NDArray[np.int8]


@dataclass(slots=True)
class ParityCount:
    """The parity of each CPU after the last batch."""

    _after: dict[int, int] = field(default_factory=dict)

    def count(self, batch: Columns) -> Parity:
        """The parity before each row takes effect: USER, KERNEL, or UNKNOWN before a CPU's first sight of CPL 3."""
        parity = np.full(len(batch), UNKNOWN, np.int8)
        synced = sync_points(batch)
        swaps = batch["kind"] == Kind.SWAPGS
        for cpu, (mine, _) in by_cpu(batch).items():
            parity[mine] = self._one_cpu(cpu, synced[mine], swaps[mine])
            # An entry from user code finds the user's base whatever the count says: the exit before it was wrong.
        from_user = (batch["kind"] == Kind.ENTRY) & is_user(batch)
        parity[from_user] = USER
        return parity

    def after(self, cpu: int) -> int:
        """The parity of `cpu` after its last event."""
        return self._after.get(cpu, UNKNOWN)

    def _one_cpu(self, cpu: int, synced: Bools, swaps: Bools) -> Parity:
        start = self._after.get(cpu, UNKNOWN)
        odd = np.bitwise_xor.accumulate(swaps.view(np.int8))  # whether the swaps so far are odd
        latest = np.maximum.accumulate(np.where(synced, np.arange(1, len(synced) + 1, dtype=np.int32), np.int32(0)))
        # The sync point that counts for a row is the last one strictly before it.
        ahead = np.concatenate((latest[:1] * 0, latest[:-1]))
        since = odd ^ swaps ^ np.where(ahead > 0, odd[ahead - 1], np.int8(0))
        first = np.where(ahead > 0, np.int8(USER), np.int8(start))
        result = np.where(first == UNKNOWN, np.int8(UNKNOWN), first ^ since)
        last_sync = int(latest[-1])
        rest = int(odd[-1]) ^ (int(odd[last_sync - 1]) if last_sync else 0)
        self._after[cpu] = USER ^ rest if last_sync else (start if start == UNKNOWN else start ^ rest)
        return result


def sync_points(batch: Columns) -> Bools:
    """Rows after which the user's base is active by definition: entries from and exits to CPL 3."""
    kind = batch["kind"]
    points: Bools = ((kind == Kind.ENTRY) | (kind == Kind.EXIT)) & is_user(batch)
    return points
