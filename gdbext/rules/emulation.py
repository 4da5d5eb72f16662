"""Instructions of user code that the kernel carries out: an exception that is not resumed where it came.

The context goes on behind the instruction, perhaps with a result; in virtual-8086 mode, whose monitor also stands in
for INT and IRET (Intel SDM vol. 3B, 21.2), anywhere. The results are the instruction's where it is known, which the
bytes in front of the exit's RIP show. No other has more than four: where more registers differ, the context went on
behind its instruction, but was not restored. What was interrupted is over then: where the same instruction faults
again, or an interrupt comes there, it must not be taken for that.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np

from gdbext.arch import flags as rf
from gdbext.arch import vectors
from gdbext.arch.registers import GPR64
from gdbext.code.disasm import MAX_INSN, Code
from gdbext.events.row import Batch, Flag, How
from gdbext.ledger.compare import BIT, GPR_BITS, Law, agreement, differences
from gdbext.ledger.pending import ALIKE

_REGISTERS: Final = 15
"""General registers besides RSP."""
_RESULTS: Final = 4
"""The most registers that an instruction changes besides RSP (CPUID)."""
_SEEN: Final = 4
"""Bytes in front of its RIP that an exit shows."""
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
    lost = changed > _RESULTS and int(newest["vector"][0]) not in vectors.TRACER_MAY_EDIT
    behind = bool(newest["rsp"][0] == row["rsp"][0]) and 0 < _ahead(newest, row) <= MAX_INSN
    return behind and (alike or lost or _known(newest, row) is not None)


def lost(entry: Batch, row: Batch, law: Law) -> int:
    """The mask of what no instruction changes and the exit `row` did not bring back of `entry`."""
    free, results = _FREE, _known(entry, row)
    if results is not None:
        free &= ~GPR_BITS | results
    elif _changed(entry, row) > _RESULTS:
        free &= ~GPR_BITS
    return int(differences(entry, row, law)[0]) & ~free


def _known(entry: Batch, row: Batch) -> int | None:
    """The mask of the results of the instruction between `entry` and the exit `row`, None where it is not known."""
    ahead = _ahead(entry, row)
    if entry["rflags"][0] & np.uint64(rf.VM) or not 0 < ahead <= _SEEN:
        return None
    bits = 32 if row["flags"][0] & Flag.LINEAR32 or row["mode"][0] == 32 else 64
    return _results(int(row["value"][0]).to_bytes(8, "little")[_SEEN - ahead : _SEEN], bits)


def _ahead(entry: Batch, row: Batch) -> int:
    return int(row["rip"][0]) - int(entry["rip"][0])


@cache
def _results(raw: bytes, bits: int) -> int | None:
    """The mask of the general registers that the instruction `raw` writes; None where it is not known to write any:
    its like (``ud2``, ``vmcall``, ``hlt``) mean what the kernel has them mean."""
    code = Code(lambda address, length: raw[address : address + length], bits)
    insn = code.insn(0)
    if insn is None or insn.size != len(raw):
        return None
    return sum(int(BIT[name]) for name in code.effects(insn)[1] if name in GPR64 and name != "rsp") or None


def _changed(entry: Batch, row: Batch) -> int:
    """How many general registers besides RSP differ."""
    return _REGISTERS - int(agreement(entry, row)[0][0])
