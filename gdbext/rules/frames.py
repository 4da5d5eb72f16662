"""The stack pointer at iret against the frames the CPU pushed: CW301, or CW402 where it is the frame that is moved."""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.arch.frames import CS_WORD, word_size
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.rules.draft import Draft
from gdbext.rules.finding import Difference

MAX_SELECTOR: Final = 0xFFFF


def judge_unbalanced(row: Batch, near: Batch) -> tuple[Draft, Batch] | None:
    """Judge an iret (a batch of one) that matches nothing: does RSP stand a few words beside a live frame?

    `near`: the pending contexts of its CPU and mode whose frames are within reach. Returns the draft and the entry
    whose frame it is, or None. The words themselves must agree: those that iret pops are the frame's, moved by the
    distance.
    """
    if row["how"][0] != How.IRET or not len(near):
        return None
    size = word_size(int(row["mode"][0]))
    popped = _words(row)
    distances = (row["frame"] - near["frame"]).astype(np.int64).tolist()
    for at, (distance, frame) in reversed(list(enumerate(zip(distances, near["stack"].tolist(), strict=True)))):
        words = distance // size
        if near["frame"][at] and distance % size == 0 and _shifted(frame[: 5 if size == 8 else 3], popped, words, size):
            entry = near[at : at + 1]
            return unbalanced_by(entry, row, words, size), entry
    return None


def judge_moved(entry: Batch, row: Batch, past: Batch) -> Draft | None:
    """Judge an iret (a batch of one) that pops above the frame of `entry`: is it the frame that lies too low?

    It does if the CPU had resumed what `entry` interrupted from just there, and that code has pushed since: its context
    is kept where its stack begins (seL4's idle thread). past: the events before `entry`.
    """
    resumed = past[(past["cpu"] == entry["cpu"]) & (past["kind"] == Kind.EXIT)][-1:]
    if not len(resumed) or resumed["frame"][0] != row["frame"][0] or resumed["mode"][0] != row["mode"][0]:
        return None
    size, stack = word_size(int(row["mode"][0])), int(resumed["rsp"][0])
    pushed, moved = stack - int(entry["rsp"][0]), int(row["frame"][0]) - int(entry["frame"][0])
    if not 0 < pushed <= moved:
        return None
    cause = (
        f"the code that iret resumed at event {int(resumed['seq'][0])} had pushed {pushed // size} "
        f"word{'s' * (pushed > size)} when it was interrupted: its context is kept where its stack begins, at "
        f"{int(row['frame'][0]):#x}, and all that was saved of it lies {moved // size} "
        f"word{'s' * (moved > size)} too low"
    )
    look = "what pushes in the interrupted code (a compiler's prologue, a call), which has no stack to push to"
    return Draft("CW402", cause, look, (Difference("rsp", stack, int(entry["rsp"][0])),), match="nearest")


def judge_unreadable(row: Batch, live: Batch, near: Batch) -> tuple[Draft, Batch | None] | None:
    """Judge an iret (a batch of one) whose frame is not in mapped memory: it can be nobody's, so RSP is wrong.

    `live`: all pending contexts; `near`: as for :func:`judge_unbalanced`. Where no frame lies beside it, only 64-bit
    kernel code is judged: elsewhere SS may have a base.
    """
    if row["how"][0] != How.IRET or (live["frame"] == row["frame"]).any():
        return None
    size = word_size(int(row["mode"][0]))
    if not len(near):
        return (_nowhere(row), None) if size == 8 and row["cpl"][0] == 0 else None
    distances = np.abs((row["frame"] - near["frame"]).astype(np.int64))
    closest = near[np.flatnonzero(distances == distances.min())[-1:]]
    words = int((row["frame"] - closest["frame"]).astype(np.int64)[0]) // size
    return unbalanced_by(closest, row, words, size), closest


def _nowhere(row: Batch) -> Draft:
    at = int(row["frame"][0])
    cause = f"RSP is {at:#x}, and the frame that iret is about to pop there is not in mapped memory"
    look = "what the exit dropped that was never pushed: RSP is at or beyond the end of its stack"
    return Draft("CW301", cause, look, (Difference("rsp", None, at),))


def _shifted(frame: list[int], popped: list[int], words: int, size: int) -> bool:
    """True if the words at RSP are those of the entry's frame, `words` further (negative: RSP is too low).

    The saved RIP may have been redirected meanwhile (a fixup), the words above it not; of an ia32 frame, which has
    but two of those, RIP must agree too, unless what iret takes for CS is no selector at all.
    """
    first = 1 if size == 8 or popped[CS_WORD] > MAX_SELECTOR else 0
    pairs = [(popped[at - words], frame[at]) for at in range(first, len(frame)) if 0 <= at - words < len(popped)]
    return len(pairs) >= 2 and all(held == pushed for held, pushed in pairs)


def _words(row: Batch) -> list[int]:
    words: list[int] = row["stack"][0].tolist()
    return words


def unbalanced_by(entry: Batch, row: Batch, words: int, size: int) -> Draft:
    """CW301: RSP at the exit `row` is `words` of `size` bytes above (negative: below) the frame of `entry`.

    That is the frame the CPU pushed, or the kernel's copy of it.
    """
    actual = int(row["frame"][0])
    expected = actual - words * size
    if words < 0:
        left = "what" if row["flags"][0] & Flag.UNREADABLE else f"{_words(row)[0]:#x}, which"
        cause = (
            f"RSP is {-words} word{'s' * (words < -1)} below the frame the CPU pushed at {expected:#x}: iret takes "
            f"{left} was left on the stack, for RIP and the saved RIP for CS"
        )
        look = "what the entry stub pushed and the exit did not drop: the error code, a vector number, an argument"
    else:
        cause = (
            f"RSP is {words} word{'s' * (words > 1)} above the frame the CPU pushed at {expected:#x}: iret takes the "
            f"saved {('RIP', 'CS', 'RFLAGS', 'RSP', 'SS')[min(words, 4)]} for RIP"
        )
        look = "what the exit dropped and the entry never pushed: an error code that this vector does not have"
    return Draft("CW301", cause, look, (Difference("rsp", expected, actual),), match="nearest")
