"""An iret that pops what is no context: CW402 where one begins a few words beside it, else CW403.

What lies there was never saved as a frame, or was overwritten: the stack of a thread that another one ran on, a stack
pointer that was saved too late, a word too many or too few. What the CPU makes of such words (a privilege level, GS,
IF) says nothing, so that no other rule's word on that exit counts.

No context is what has for CS a selector that nothing was ever seen to run with, and besides bits in RFLAGS that are
reserved, a CS as wide as an address, or, where user code ran before, an SS of another privilege level, on which the CPU
faults. (A first return to user mode with a wrong SS is a pair that was chosen wrongly, CW604.) Nor is what has the
kernel's CS, but an RSP in the other half of the address space than the kernel, and an SS that nothing was ever seen to
run with, where nothing was interrupted so.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.arch import flags as rf
from gdbext.arch.frames import CS_WORD, RFLAGS_WORD, RIP_WORD, SS_WORD
from gdbext.events.columns import Columns, any_of
from gdbext.events.row import STACK_WORDS, Batch, Flag, How, Kind
from gdbext.ledger.compare import contexts
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference

SELECTOR_BITS: Final = 16
NULL_SELECTOR: Final = 0xFFFC
"""Bits that are clear in a null selector (Intel SDM vol. 3A, 3.4.2)."""
BESIDE_CS: Final = 40
"""Bits of a saved CS in the lowest of which a kernel may keep something of its own, above the selector (Xen)."""
LOW: Final = 0xFFFF_FFFF
"""A kernel may keep something of its own in the upper half of a saved RFLAGS."""


HALF: Final = np.uint64(63)
"""The bit that tells the halves of a 64-bit address space apart."""
_LOOK: Final = (
    "who else used this stack since the frame was made: a second thread or CPU on it (RSP0, the stack that system "
    "calls take), an overflow, or a thread that was taken up before its stack pointer was saved"
)


class NoContextJudge:
    """Learns with which CS code runs, and judges what irets pop."""

    def __init__(self) -> None:
        self._runs: dict[int, int] = {}
        """Selectors that code was interrupted with, and the event that showed each first."""
        self._stacks: dict[int, int] = {}
        """Its SS, likewise."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the irets of a batch that found no equal context."""
        batch = contexts(batch)
        kind, flags, how = batch["kind"], batch["flags"], batch["how"]
        pushed = (kind == Kind.ENTRY) & (how != How.SYSCALL) & (how != How.SYSENTER) & (flags & Flag.UNREADABLE == 0)
        entries = np.flatnonzero(pushed & (batch["rflags"] & rf.VM == 0))
        for name, seen in (("cs", self._runs), ("ss", self._stacks)):
            selectors = batch[name][entries]
            for at in np.flatnonzero(~any_of(selectors, seen)).tolist():
                seen.setdefault(int(selectors[at]), int(batch["seq"][entries[at]]))
        popped = (kind == Kind.EXIT) & (how == How.IRET)
        popped &= flags & (Flag.IDENTICAL | Flag.SELF | Flag.UNREADABLE) == 0
        positions = np.flatnonzero(popped)
        cs, events = batch.at("cs", positions), batch.at("seq", positions)
        ran = np.zeros(len(positions), bool)
        for selector, event in self._runs.items():
            ran |= (cs == selector) & (events > event)
        astray = ran & (batch.at("match", positions) == 0) & (batch.at("mode", positions) == 64)
        astray &= batch.at("rsp", positions) >> HALF < batch.at("rip", positions) >> HALF
        judged = [judged for at in positions[~ran].tolist() for judged in self._judge(batch.row(at))]
        return judged + [found for at in positions[astray].tolist() for found in self._judge_stack(batch.row(at))]

    def _judge_stack(self, row: Batch) -> list[Judged]:
        """Judge an iret to kernel code in the upper half with a stack in the lower one."""
        seen = {selector for selector, event in self._stacks.items() if event < row["seq"][0]}
        if not seen or int(row["ss"][0]) in seen | {0}:
            return []
        return [(_astray(row), row.copy(), None)]

    def _judge(self, row: Batch) -> list[Judged]:
        words = [int(word) for word in row["stack"][0]]
        seen = {selector for selector, event in self._runs.items() if event < row["seq"][0]}
        wrong = _wrong(row, words, any(selector & 3 == 3 for selector in seen))
        if not seen or not wrong or words[RFLAGS_WORD] & rf.VM:
            return []
        further = range(1, STACK_WORDS - RFLAGS_WORD)
        shift = next((n for n in further if words[n + CS_WORD] in seen and not _odd_flags(words[n + RFLAGS_WORD])), 0)
        where = f"{shift} word{'s' if shift > 1 else ''} further up" if shift else ""
        where = where or ("1 word further down" if _begun(row, words) else "")
        return [(_draft(row, words, wrong, where), row.copy(), None)]


def says(draft: Draft) -> bool:
    """True if `draft` is one of this rule's."""
    return draft.code in ("CW402", "CW403") and [d.field for d in draft.differences] in (["cs"], ["ss"])


def _odd_flags(word: int) -> bool:
    return bool(word & rf.RESERVED & LOW)


def _begun(row: Batch, words: list[int]) -> bool:
    """True if `words` can be CS, RFLAGS, RSP and SS of a 64-bit frame: its RIP lies in front of them."""
    cs, rflags, _, ss = words[:4]
    selectors = max(cs, ss) >> SELECTOR_BITS == 0 and (cs ^ ss) & 3 == 0 and cs != 0
    return selectors and row["mode"][0] == 64 and bool(rflags & rf.ALWAYS_ONE) and not rflags & rf.RESERVED


def _wrong(row: Batch, words: list[int], user_ran: bool) -> str:
    """Why the words that the exit `row` pops are no frame, besides their CS; empty if they may be one."""
    if words[CS_WORD] >> BESIDE_CS and row["mode"][0] == 64:
        return "CS has 16 bits"
    if words[CS_WORD] & NULL_SELECTOR == 0:
        return "CS cannot be null"
    if _odd_flags(words[RFLAGS_WORD]):
        return f"RFLAGS cannot be {words[RFLAGS_WORD]:#x}"
    outer = not row["flags"][0] & Flag.NO_STACK
    if user_ran and outer and (words[CS_WORD] ^ words[SS_WORD]) & 3:
        return f"SS {words[SS_WORD]:#x} is of another privilege level"
    return ""


def _draft(row: Batch, words: list[int], wrong: str, where: str) -> Draft:
    """where: the place of the frame that was meant, beside the words that are popped; empty where there is none."""
    frame, cs = int(row["frame"][0]), words[CS_WORD]
    cause = (
        f"the iret takes up what is no context: the words at {frame:#x} would be RIP {words[RIP_WORD]:#x} and CS "
        f"{cs:#x}, with which nothing ever ran here, and {wrong}"
    )
    found = (Difference("cs", None, cs),)
    if where:
        cause += f"; one begins {where}"
        look = (
            "what the path before this iret pops and drops beside what was pushed, the RSP that it starts from, and "
            "whether another thread ran on this stack meanwhile"
        )
        return Draft("CW402", cause, look, found)
    return Draft("CW403", cause, _LOOK, found)


def _astray(row: Batch) -> Draft:
    ss = int(row["ss"][0])
    cause = (
        f"the iret takes up what is no context: the words at {int(row['frame'][0]):#x} would be kernel code's with RSP "
        f"{int(row['rsp'][0]):#x}, where no kernel's stack is, and SS {ss:#x}, with which nothing ever ran here"
    )
    return Draft("CW403", cause, _LOOK, (Difference("ss", None, ss),))
