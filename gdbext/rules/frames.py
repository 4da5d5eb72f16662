"""The stack pointer at iret against the frames the CPU pushed: CW301."""

from __future__ import annotations

import numpy as np

from gdbext.arch.frames import word_size
from gdbext.events.row import Batch, How
from gdbext.rules.draft import Draft
from gdbext.rules.finding import Difference

REACH_BYTES = 64
"""How far from a live frame an unbalanced RSP is recognised (the captured words)."""


def judge_unbalanced(row: Batch, live: Batch) -> tuple[Draft, Batch] | None:
    """Judge an iret (a batch of one) that matches nothing: does RSP stand a few words beside a live frame?

    `live`: the pending contexts. Returns the draft and the entry whose frame it is, or None. The words themselves
    must agree: those that iret pops are the frame's, moved by the distance.
    """
    if row["how"][0] != How.IRET or not len(live):
        return None
    size = word_size(int(row["mode"][0]))
    near = live[(live["cpu"] == row["cpu"]) & (live["mode"] == row["mode"]) & (live["frame"] != 0)]
    distance = (row["frame"] - near["frame"]).astype(np.int64)
    for index in np.flatnonzero((distance != 0) & (np.abs(distance) < REACH_BYTES) & (distance % size == 0))[::-1]:
        words = int(distance[index]) // size
        entry = near[index : index + 1]
        if _shifted(entry, row, words, size):
            return _draft(entry, row, words, size), entry
    return None


def _shifted(entry: Batch, row: Batch, words: int, size: int) -> bool:
    """True if the words at RSP are those of the entry's frame, `words` further (negative: RSP is too low).

    The saved RIP may have been redirected meanwhile (a fixup), the words above it not; of an ia32 frame, which has
    but two of those, RIP must agree too.
    """
    frame = _words(entry)[: 5 if size == 8 else 3]
    popped = _words(row)
    first = 1 if size == 8 else 0
    pairs = [(popped[at - words], frame[at]) for at in range(first, len(frame)) if 0 <= at - words < len(popped)]
    return len(pairs) >= 2 and all(held == pushed for held, pushed in pairs)


def _words(row: Batch) -> list[int]:
    words: list[int] = row["stack"][0].tolist()
    return words


def _draft(entry: Batch, row: Batch, words: int, size: int) -> Draft:
    expected, actual = int(entry["frame"][0]), int(row["frame"][0])
    if words < 0:
        left = _words(row)[0]
        cause = (
            f"RSP is {-words} word{'s' * (words < -1)} below the frame the CPU pushed at {expected:#x}: iret takes "
            f"{left:#x}, which was left on the stack, for RIP and the saved RIP for CS"
        )
        look = "what the entry stub pushed and the exit did not drop: the error code, a vector number, an argument"
    else:
        cause = (
            f"RSP is {words} word{'s' * (words > 1)} above the frame the CPU pushed at {expected:#x}: iret takes the "
            f"saved {('RIP', 'CS', 'RFLAGS', 'RSP', 'SS')[min(words, 4)]} for RIP"
        )
        look = "what the exit dropped and the entry never pushed: an error code that this vector does not have"
    return Draft("CW301", cause, look, (Difference("rsp", expected, actual),), match="nearest")
