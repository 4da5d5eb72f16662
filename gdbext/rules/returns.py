"""What must hold of any resumed context, matched or not: CW601, CW602, CW603."""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.arch import flags as rf
from gdbext.arch.addresses import is_canonical
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.ledger.compare import Bools, is_user
from gdbext.rules.draft import Draft
from gdbext.rules.finding import Difference
from gdbext.rules.linear import LinearWidth
from gdbext.rules.policy import Policy

REAL_MODE_TOP: Final = 0xFFFF
"""The highest EIP in virtual-8086 mode: what begins below it may well be meant for that mode."""


def suspicious(batch: Columns, policy: Policy, width: LinearWidth) -> Bools:
    """Exits that break an invariant of returns: True in a mask over the batch."""
    kind = batch["kind"]
    exits = kind == Kind.EXIT
    readable = batch["flags"] & Flag.UNREADABLE == 0
    user = is_user(batch)
    bad = width.noncanonical(batch) | (user & ((batch["rflags"] & rf.IF) == 0))
    bad |= user & ((batch["rflags"] & forbidden_flags(policy)) != 0)
    result: Bools = readable & exits & bad
    return result


def forbidden_flags(policy: Policy) -> np.uint64:
    """RFLAGS bits that no return to user mode may carry."""
    bits = rf.NT
    if not policy.user_iopl:
        bits |= rf.IOPL
    if not policy.vm86:
        bits |= rf.VM
    return np.uint64(bits)


def judge_exit(row: Batch, entry: Batch | None, policy: Policy, width: int) -> list[Draft]:
    """Judge one exit (a batch of one) that may break an invariant; `entry` is what it resumes, if known.

    width: bits of a linear address.  What the interrupted context had already is not the exit's fault and was reported
    where it began.
    """
    drafts: list[Draft] = []
    rip, flags = int(row["rip"][0]), int(row["rflags"][0])
    had = int(entry["rflags"][0]) if entry is not None else 0
    if not is_canonical(rip, width) and row["mode"][0] == 64:
        drafts.append(
            Draft(
                "CW601",
                f"{_name(row)} loads RIP {rip:#x}, which is not canonical: bits 63 to {width - 1} differ"
                + ("; on Intel sysret faults at CPL 0 with the user's RSP" if row["how"][0] == How.SYSRET else ""),
                "who wrote the return address: the saved RIP, RCX before sysret, or a check that is missing there",
                (Difference("rip", int(entry["rip"][0]) if entry is not None else rip & (1 << width - 1) - 1, rip),),
            )
        )
    if not bool(is_user(row)[0]):
        return drafts
    if not flags & rf.IF and (entry is None or had & rf.IF):
        drafts.append(
            Draft(
                "CW602",
                "user code is resumed with interrupts off: nothing can preempt it any more",
                "where IF of the saved RFLAGS is cleared: flags captured after cli, or a frame built without IF",
                (Difference("rflags", flags | rf.IF, flags),),
            )
        )
    leaked = flags & int(forbidden_flags(policy))
    if entry is None and rip <= REAL_MODE_TOP:
        leaked &= ~rf.VM
    if leaked & ~had:
        drafts.append(
            Draft(
                "CW603",
                f"user code is resumed with {rf.describe(leaked)}: it may now use what only the kernel should",
                "who can write the saved RFLAGS (a signal or context-set call?) and where they should be masked",
                (Difference("rflags", flags & ~leaked, flags),),
            )
        )
    return drafts


def _name(row: Batch) -> str:
    return How.name(int(row["how"][0]))
