"""Voluntary stack switches: what the switch function was entered with comes back when it returns (CW108)."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from gdbext.arch.frames import word_size
from gdbext.arch.registers import CALLEE_SAVED_32, CALLEE_SAVED_64
from gdbext.events.columns import Columns, Indices, grouped
from gdbext.events.row import Batch, Flag, How, Kind, single
from gdbext.ledger.compare import U64, changed_registers, contexts, is_user, mask_of, turns
from gdbext.ledger.pairing import adjacent
from gdbext.rules.convention import Convention
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference

CAPACITY: Final = 4096
_SAVED_64: Final = np.uint32(mask_of(CALLEE_SAVED_64))
_SAVED_32: Final = np.uint32(mask_of(CALLEE_SAVED_32))
WORDS_OFF: Final = 4
"""By so many words a thread's RSP is lost where a switch drops what it did not push."""
CODE_REACH: Final = 1 << 31
"""Bytes a near call reaches: a caller is no further from its function."""


class SwitchJudge:
    """Threads that switched away, by the stack pointer at the switch function's first instruction."""

    def __init__(self, convention: Convention) -> None:
        self._convention = convention
        self._away: dict[int, Batch] = {}
        self._came: dict[int, int] = {}
        """By CPU the stack that it came to last."""

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the switches of a batch in order."""
        rows = turns(batch)
        came = rows.take(np.flatnonzero(rows["kind"] == Kind.SWITCH_IN))
        cpus, stacks = came["cpu"].tolist(), came["rsp"].tolist()
        seen = {*zip(cpus, stacks, strict=True), *self._came.items()}
        self._came.update(zip(cpus, stacks, strict=True))
        return (self._relied_on(self._switches(rows)) if len(rows) else []) + self._beside(contexts(batch), seen)

    def _relied_on(self, judged: list[Judged]) -> list[Judged]:
        """Those of the lost registers `judged` on which a caller may rely: none, where no call keeps any."""
        return [
            item
            for item in judged
            if item[2] is None
            or not self._convention.keeps_none(item[1], int(item[1]["pc"][0]), int(item[2]["stack"][0][0]))
        ]

    def _switches(self, rows: Columns) -> list[Judged]:
        """Judge the switches of a batch."""
        returns = rows["stack"][:, 0]
        border = np.flatnonzero(_at_function(rows, returns))
        rows, returns = rows.take(border), returns[border]
        if not len(rows):
            return []
        leaves, stacks = rows["kind"] == Kind.SWITCH_OUT, rows["rsp"]
        within = adjacent(stacks, ~leaves)
        judged: list[Judged] = []
        for out, at in zip(*_changed(rows, returns, *within), strict=True):
            left, back = rows.row(out), rows.row(at)
            judged += [(draft, back, left) for draft in _judge(left, back)]
        groups = grouped(stacks)
        first, last = groups.first, groups.last
        came: list[tuple[int, Batch]] = []
        for at, stack, leaving in zip(first.tolist(), stacks[first].tolist(), leaves[first].tolist(), strict=True):
            away = self._away.pop(stack, None)
            if away is not None and not leaving:
                came.append((at, away))
        backs = rows.pick(np.array([at for at, _ in came], np.intp))
        for number, (_, away) in enumerate(came):
            back = single(backs, number)
            judged += [(draft, back, away) for draft in _judge(away, back)]
        gone = np.sort(last[leaves[last]])
        left_behind = rows.pick(gone)
        for at, stack in enumerate(stacks[gone].tolist()):
            self._away[stack] = single(left_behind, at)
        for stack in list(self._away)[: max(len(self._away) - CAPACITY, 0)]:
            del self._away[stack]
        return judged

    def _beside(self, rows: Columns, came: set[tuple[int, int]]) -> list[Judged]:
        """Judge the irets among `rows` that go to where a thread waits to go on, but with RSP beside where it left it.

        came: CPUs and the stacks they came to, as threads had left them.
        """
        if not self._away:
            return []
        judged: list[Judged] = []
        taken = (rows["kind"] == Kind.EXIT) & (rows["how"] == How.IRET) & ~is_user(rows)
        taken &= (rows["flags"] & (Flag.IDENTICAL | Flag.SELF | Flag.UNREADABLE)) == 0
        positions = np.flatnonzero(taken)
        columns = (rows.at(name, positions).tolist() for name in ("cpu", "mode", "rsp"))
        for at, cpu, bits, rsp in zip(positions.tolist(), *columns, strict=True):
            stack = rsp - word_size(bits)
            if (cpu, stack) not in came:
                row = rows.row(at)
                judged += [(_off(left, row), row, left) for left in self._left_beside(row, stack)]
        return judged

    def _left_beside(self, row: Batch, stack: int) -> list[Batch]:
        """The thread that left with RSP a few words beside `stack`, to go on where the exit `row` goes, if one did."""
        word = word_size(int(row["mode"][0]))
        near = (self._away.get(stack + words * word) for words in range(-WORDS_OFF, WORDS_OFF + 1) if words)
        before = [left for left in near if left is not None and left["seq"][0] < row["seq"][0]]
        return [left for left in before if left["stack"][0][0] == row["rip"][0]][:1]


def _at_function(rows: Columns, back: U64) -> npt.NDArray[np.bool_]:
    """True where `back`, what lies at RSP, can be a return address of this code: a function's border.

    (Code that changes to another stack within a function, as for an interrupt stack, looks like a switch too; it
    finds there what the function pushed.)
    """
    pc, reach, top = rows["pc"], np.uint64(CODE_REACH), np.uint64(63)
    border: npt.NDArray[np.bool_] = (back - pc + reach < 2 * reach) & (back >> top == pc >> top)
    empty = np.flatnonzero(back == 0)
    border[empty] |= ~rows["stack"].take(empty, axis=0).any(axis=1)  # not captured
    return border


def _changed(rows: Columns, to: U64, left: Indices, back: Indices) -> tuple[list[int], list[int]]:
    """The pairs of which a callee-saved register differs, but not the return address, `to`."""
    same = to[left] == to[back]
    left, back = left[same], back[same]
    saved = np.where(rows["mode"].take(back) == 64, _SAVED_64, _SAVED_32)
    lost = (changed_registers(rows.take(left), rows.take(back)) & saved) != 0
    return left[lost].tolist(), back[lost].tolist()


def _judge(left: Batch, back: Batch) -> list[Draft]:
    """Judge a return to a thread that left; another return address is another thread, on a dead one's stack."""
    if left["stack"][0][0] != back["stack"][0][0]:
        return []
    saved = CALLEE_SAVED_64 if back["mode"][0] == 64 else CALLEE_SAVED_32
    lost = tuple(Difference(n, int(left[n][0]), int(back[n][0])) for n in saved if left[n][0] != back[n][0])
    if not lost:
        return []
    listed = ", ".join(d.field for d in lost)
    cause = (
        f"the thread that switched away at event {int(left['seq'][0])} comes back with {listed} changed; "
        "the calling convention has its caller rely on it"
    )
    return [Draft("CW108", cause, "the pushes of the switch function beside its pops", lost, match="exact")]


def _off(left: Batch, row: Batch) -> Draft:
    """A thread that left by a call (`left`) goes on by the iret `row` with another RSP."""
    expected, actual = int(left["rsp"][0]) + word_size(int(row["mode"][0])), int(row["rsp"][0])
    cause = (
        f"the thread that switched away at event {int(left['seq'][0])} goes on where it left, but with RSP off by "
        f"{actual - expected:+d} bytes: all that its functions pop and return to is another word"
    )
    look = "the frame that the switch builds for this iret: RSP as it is behind the call, and what is dropped before it"
    return Draft("CW108", cause, look, (Difference("rsp", expected, actual),), match="nearest")
