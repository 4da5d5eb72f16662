"""Instructions of user code that the kernel carries out: an exception that is not resumed where it came.

The context goes on behind the instruction, perhaps with a result; in virtual-8086 mode, whose monitor also stands in
for INT and IRET (Intel SDM vol. 3B, 21.2), anywhere. No instruction has more than four results: where more registers
differ, the context went on behind its instruction, but was not restored. What was interrupted is over then: where the
same instruction faults again, or an interrupt comes there, it must not be taken for that.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.arch import flags as rf
from gdbext.arch import vectors
from gdbext.code.disasm import MAX_INSN
from gdbext.events.row import Batch, How
from gdbext.ledger.compare import BIT, GPR_BITS, Law, agreement, differences
from gdbext.ledger.pending import ALIKE

_REGISTERS: Final = 15
"""General registers besides RSP."""
_RESULTS: Final = 4
"""The most registers that an instruction changes besides RSP (CPUID)."""
_FREE: Final = GPR_BITS | int(BIT["rip"] | BIT["rflags"] | BIT["cs"] | BIT["simd"] | BIT["fs_base"] | BIT["gs_base"])


def goes_on(row: Batch, newest: Batch, exact: Batch | None) -> bool:
    """True if the exit `row` (a batch of one) goes on behind the instruction that raised an exception.

    newest: the last context of its thread that waits (a batch of one, or empty).  exact: the one that waits for the
    same RIP and RSP, None if there is none; one that is newer is what the exit resumes.
    """
    if not len(newest) or row["how"][0] != How.IRET or not vectors.is_exception(int(newest["vector"][0])):
        return False
    if exact is not None and exact["seq"][0] >= newest["seq"][0]:
        return False
    changed = _changed(newest, row)
    alike = changed <= _REGISTERS - ALIKE
    if newest["rflags"][0] & row["rflags"][0] & np.uint64(rf.VM):
        return alike
    ahead = int(row["rip"][0]) - int(newest["rip"][0])
    lost = changed > _RESULTS and int(newest["vector"][0]) not in vectors.TRACER_MAY_EDIT
    return bool(newest["rsp"][0] == row["rsp"][0]) and 0 < ahead <= MAX_INSN and (alike or lost)


def lost(entry: Batch, row: Batch, law: Law) -> int:
    """The mask of what no instruction changes and the exit `row` did not bring back of `entry`."""
    free = _FREE if _changed(entry, row) <= _RESULTS else _FREE & ~GPR_BITS
    return int(differences(entry, row, law)[0]) & ~free


def _changed(entry: Batch, row: Batch) -> int:
    """How many general registers besides RSP differ."""
    return _REGISTERS - int(agreement(entry, row)[0][0])
