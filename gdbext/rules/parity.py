"""GS parity by count: which of user and kernel GS is active at each event, per CPU, on columns.

CPL 3 means the user's base is active; each ``swapgs`` since then toggles. Values are never looked at: a kernel that
loads both MSRs with the same address hides a wrong swap from anything that compares them. One exception: a handler that
writes the kernel's base over the user's (a paranoid entry with FSGSBASE) has it, until it writes another one or swaps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gdbext.arch.registers import MSR_GS_BASE
from gdbext.events.columns import Columns, by_cpu
from gdbext.events.row import Kind
from gdbext.ledger.compare import Bools, crosses

UNKNOWN, USER, KERNEL = -1, 0, 1

Parity = npt.NDArray[np.int8]


@dataclass(slots=True)
class ParityCount:
    """The parity of each CPU after the last batch."""

    _after: dict[int, int] = field(default_factory=dict)
    _written: dict[int, bool] = field(default_factory=dict)
    """By CPU: whether the kernel's base was written over the user's and is still there."""

    def count(self, batch: Columns) -> Parity:
        """The parity before each row takes effect: USER, KERNEL, or UNKNOWN before a CPU's first sight of CPL 3."""
        parity = np.full(len(batch), UNKNOWN, np.int8)
        for cpu, (mine, rows) in by_cpu(batch).items():
            parity[mine] = self._of_cpu(cpu, rows)
        # An entry from user code finds the user's base whatever the count says: the exit before it was wrong.
        parity[crosses(batch) & (batch["kind"] == Kind.ENTRY)] = USER
        return parity

    def after(self, cpu: int) -> int:
        """The parity of `cpu` after its last event."""
        return self._after.get(cpu, UNKNOWN)

    def _of_cpu(self, cpu: int, rows: Columns) -> Parity:
        """The parity before each of the `rows` of one CPU."""
        kind = rows["kind"]
        synced, swaps = crosses(rows), kind == Kind.SWAPGS  # behind a crossing the user's base is active by definition
        parity = self._counted(cpu, synced, swaps)
        writes = np.flatnonzero(kind == Kind.BASE)
        writes = writes[rows.at("addr", writes) == MSR_GS_BASE]
        if not self._written.get(cpu) and not len(writes):
            return parity
        begins, ends = np.zeros(len(rows), bool), synced | swaps
        begins[writes] = _is_kernels(rows.take(writes)) & (parity[writes] == USER)
        ends[writes] = True
        return self._with_written(cpu, parity, begins, ends)

    def _counted(self, cpu: int, synced: Bools, swaps: Bools) -> Parity:
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

    def _with_written(self, cpu: int, parity: Parity, begins: Bools, ends: Bools) -> Parity:
        """`parity` where a handler of `cpu` writes the kernel's base at `begins`; it is gone at all other `ends`."""
        numbers = np.arange(1, len(parity) + 1, dtype=np.int32)
        latest = np.maximum.accumulate(np.where(begins | ends, numbers, np.int32(0)))
        ahead = np.concatenate((latest[:1] * 0, latest[:-1]))  # what counts for a row is strictly before it
        carried = self._written.get(cpu, False)
        written = np.where(ahead > 0, begins[ahead - 1], carried)
        self._written[cpu] = bool(begins[latest[-1] - 1]) if latest[-1] else carried
        return np.where(written & (parity == USER), np.int8(KERNEL), parity)


def _is_kernels(rows: Columns) -> Bools:
    """Of writes of the GS base: whether the value is the kernel's, as the probe has it."""
    value = rows["value"]
    found: Bools = (value == rows["kernel_gs_base"]) | (value >> np.uint64(63) == 1)
    return found
