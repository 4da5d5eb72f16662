"""Two CPUs on one thread's stack: CW404, for what the second one takes up was saved before the first one took it up.

A thread that becomes visible to other CPUs before it is saved is taken up from its last save while it still runs. Which
stack a CPU runs on is known from where it took its thread up by a switch until it switches again. That it has not left
that stack by another way is known once it is seen there again, or the machine dies of it; until then nothing is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from gdbext.events.columns import Columns, Indices, Joined, by_cpu, together
from gdbext.events.row import ROW, Batch, Kind, concat
from gdbext.ledger.compare import is_user, turns
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.stale import STACK_REACH

LEFT: Final = 1 << 62
"""A position behind all others."""


@dataclass(frozen=True, slots=True)
class _Suspect:
    """Two CPUs on one stack: the switches by which the first one and the second one took its thread up."""

    first: Batch
    second: Batch


class SharedStackJudge:
    """Follows on which stack each CPU took up the thread that it runs."""

    def __init__(self) -> None:
        self._here: Batch = np.zeros(0, ROW)
        """By CPU the switch by which it took up what it runs, of those that have not switched since."""
        self._suspects: list[_Suspect] = []

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge the switches of a batch in order of ``seq``."""
        if self._here.dtype != batch.dtype:
            self._here = np.zeros(0, batch.dtype)
        rows = Joined(self._here, turns(batch))
        if len(rows) > len(self._here):
            self._suspects += self._shared(rows)
        if not self._suspects:
            return []
        suspects, self._suspects = self._suspects, []
        return [judged for suspect in suspects for judged in self._confirm(suspect, batch)]

    def _shared(self, rows: Columns) -> list[_Suspect]:
        """The switches to a stack that another CPU was on."""
        comes = rows["kind"] == Kind.SWITCH_IN
        left = np.full(len(rows), LEFT)
        here: list[int] = []
        for mine, _ in by_cpu(rows).values():
            left[mine[:-1]] = mine[1:]
            here += mine[-1:][comes[mine[-1:]]].tolist()
        arrivals: Indices = np.flatnonzero(comes)
        stacks = rows["rsp"].take(arrivals)
        order = together(stacks)
        stacks, arrivals = stacks.take(order), arrivals.take(order)
        first, second = arrivals[:-1], arrivals[1:]
        shared = (stacks[1:] == stacks[:-1]) & (left[first] > second) & (rows["cpu"][first] != rows["cpu"][second])
        shared &= second >= len(self._here)
        pairs = zip(first[shared].tolist(), second[shared].tolist(), strict=True)
        found = [_Suspect(rows.row(one).copy(), rows.row(other).copy()) for one, other in pairs]
        self._here = concat([self._here[:0], *(rows.row(at).copy() for at in sorted(here))]) if here else self._here[:0]
        return found

    def _confirm(self, suspect: _Suspect, batch: Columns) -> list[Judged]:
        """The verdict on a suspect, if the batch shows the first CPU on the stack still, or the machine's death.

        Else it is kept until that CPU takes up something in the kernel, by a switch or by an iret: where it comes to
        does not tell where it was, and the stack may have been left by an iret before.
        """
        later = batch["seq"] > suspect.second["seq"][0]
        kind, mine = batch["kind"], batch["cpu"] == suspect.first["cpu"][0]
        there = batch["rsp"] - suspect.first["rsp"] + np.uint64(STACK_REACH) < 2 * STACK_REACH
        gone = (kind == Kind.SWITCH_IN) | ((kind == Kind.EXIT) & ~is_user(batch))
        ends = np.flatnonzero(later & mine & (gone | (kind == Kind.SWITCH_OUT)))[:1]
        later[int(ends[0]) + 1 if len(ends) else len(later) :] = False
        seen = (kind == Kind.SWITCH_OUT) | ((kind == Kind.ENTRY) & ~is_user(batch))
        if (later & mine & seen & there).any() or (later & (kind == Kind.DIED)).any():
            return [(_draft(suspect), suspect.second, None)]
        if not len(ends):
            self._suspects.append(suspect)
        return []


def _draft(suspect: _Suspect) -> Draft:
    first, second = suspect.first, suspect.second
    stack, owner = int(second["rsp"][0]), int(first["cpu"][0])
    cause = (
        f"CPU {int(second['cpu'][0])} takes up the thread with the stack at {stack:#x}, which CPU {owner} took up at "
        f"event {int(first['seq'][0])} and still runs: what is loaded was saved before that"
    )
    look = "whether a thread can be chosen by other CPUs (run queue, lock let go) before the switch has saved it"
    return Draft("CW404", cause, look, (Difference("rsp", None, stack),), match="thread")
