"""Contexts that change or begin on purpose: replaced by a system call that the profile names, or begun anew.

A signal handler's return replaces its caller's context, a tracer's call that of the tracee. A new context (a handler,
a fork's child) begins where others began before, with the same registers as often as not, and may be interrupted at
its first instruction: at such an address a context alike is no proof of anything.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np

from gdbext.arch.registers import GPR64
from gdbext.events.columns import Columns, Rows
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.ledger.compare import BIT, Bools, gprs, is_call, is_user, space
from gdbext.rules.fastcalls import INT_BYTES, is_fast
from gdbext.rules.history import History
from gdbext.rules.policy import Calls, Policy
from gdbext.rules.stacklost import switched_since

BEGINNINGS: Final = 1024
"""Addresses remembered at which contexts began; beyond it the oldest is forgotten."""

SIGNATURES: Final = 64
"""Signatures of restartable sequences remembered, about: a guest cannot make us remember without end."""

_BASES: Final = int(BIT["fs_base"] | BIT["gs_base"])
_TRACKED: Final = sum(int(BIT[f"tracked{slot}"]) for slot in range(4))


class Redirects:
    """Which of the differences that an exit shows were asked for."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._edits = np.empty(0, np.uint64)
        self._signatures: set[int] = set()
        """Words in front of the addresses at which restartable sequences go on."""
        self._beginnings: dict[int, None] = {}  # a dict keeps the order of insertion

    def begin(self, batch: Columns) -> None:
        """`batch` is about to be judged: note its calls that edit other contexts, and those that name signatures."""
        if not self._policy.edits_others and not self._policy.names_aborts:
            return
        calls = batch.take(np.flatnonzero((batch["kind"] == Kind.ENTRY) & is_call(batch)))
        if self._policy.edits_others:
            self._edits = np.concatenate((self._edits[-1:], calls["seq"][_made(calls, self._policy.edits_others)]))
        if self._policy.names_aborts and len(self._signatures) < SIGNATURES:
            fourth = np.where(_by_ia32(calls), calls["rsi"], calls["r10"])
            self._signatures |= set((fourth[_made(calls, self._policy.names_aborts)] & 0xFFFF_FFFF).tolist())

    def excused(self, entry: Batch, row: Batch, newest: Batch, history: History) -> int:
        """The mask of the differences between `entry` and the exit `row` that a system call asked for.

        newest: as for :meth:`replaced`. Bases are not a part of what a 64-bit handler's return replaces.
        """
        if not is_user(row)[0]:
            return 0
        first, last = np.searchsorted(self._edits, (entry["seq"][0], row["seq"][0]))
        if first < last:
            return 0xFFFF_FFFF & ~_TRACKED
        if self.replaced(row, newest, after=int(entry["seq"][0])) or (
            not self._policy.replaces_own and _goes_back(entry, row, newest, history, self._policy.syscall_returns)
        ):
            kept = _TRACKED if row["flags"][0] & Flag.LINEAR32 else _TRACKED | _BASES
            return 0xFFFF_FFFF & ~(kept | _taken_by_return(entry, row))
        return 0

    def replaced(self, row: Batch, newest: Batch, after: int = 0) -> bool:
        """True if the latest call of user code's thread, made after event `after`, replaces its own context.

        newest: the last context of the thread of the exit `row` that waits (a batch of one, or empty).
        Where no profile says which calls do, any one does that comes from a thread (told by its FS base) whose context
        was waiting already: it ran something else meanwhile, a signal handler, and does not return from the call.
        """
        if not len(newest) or newest["seq"][0] <= after or not is_call(newest)[0] or not is_user(newest)[0]:
            return False
        calls = self._policy.replaces_own
        return bool(_made(newest, calls)[0] if calls else after and row["fs_base"][0])

    def cloned(self, row: Batch, history: History) -> bool:
        """True if the exit `row` begins a thread that a call made for its caller's address space.

        Such a thread has the registers of the call, which may have returned to its caller since, but for the results
        and the stack pointer. (A call returns once: what comes again is another thread.)
        """
        if not bool(is_user(row)[0]):
            return False
        past = history.before(int(row["seq"][0]))
        return self._returned(past, row, (space(past) == space(row)) & (past["rsp"] != row["rsp"]))

    def forked(self, row: Batch, waiting: Batch, history: History) -> bool:
        """True if the exit `row` begins a process that a call of another one made.

        It has the registers of that call, which has returned to its caller since, but for the results. The call
        `waiting` for the same place is older: it ended its process, and the page tables are in use again.
        """
        if not is_user(row)[0] or not is_call(waiting)[0]:
            return False
        past = history.before(int(row["seq"][0]))
        kin = (space(past) != space(row)) & (past["rsp"] == row["rsp"]) & (past["seq"] > waiting["seq"])
        return self._returned(past, row, kin)

    def _returned(self, past: Batch, row: Batch, kin: Bools) -> bool:
        """True if one of the calls in `past` that are `kin` to the exit `row` was made with its registers, but for the
        results and the stack pointer, and has returned already."""
        rip = past["rip"] + np.uint64(INT_BYTES) * is_fast(past)
        calls = past[kin & (past["kind"] == Kind.ENTRY) & is_call(past) & (rip == row["rip"])]
        changed = gprs(calls) != gprs(row)
        changed[:, [GPR64.index(name) for name in (*self._policy.syscall_returns, "rsp")]] = False
        like = calls[~changed.any(axis=1)][-1:]
        if not len(like):
            return False
        back = (past["kind"] == Kind.EXIT) & (past["rsp"] == like["rsp"]) & (past["rip"] == row["rip"])
        back &= space(past) == space(like)
        return bool((back & (past["seq"] > like["seq"])).any())

    def aborts(self, row: Batch) -> bool:
        """True unless it is known that no restartable sequence goes on where the exit `row` goes."""
        in_front = int(row["value"][0])
        return not in_front or not self._signatures or in_front in self._signatures

    def began(self, rip: int) -> None:
        """An exit to `rip` begins a context that nothing known was interrupted in."""
        self._beginnings.pop(rip, None)
        self._beginnings[rip] = None
        if len(self._beginnings) > BEGINNINGS:
            del self._beginnings[next(iter(self._beginnings))]

    def begins(self, rip: int) -> bool:
        """True if contexts began before at `rip`."""
        return rip in self._beginnings


def _taken_by_return(entry: Batch, row: Batch) -> int:
    """The mask of the registers that the exit `row` itself destroys, unless `entry` is a call: not asked for."""
    if is_call(entry)[0]:
        return 0
    return {How.SYSRET: int(BIT["rcx"] | BIT["r11"]), How.SYSEXIT: int(BIT["rcx"] | BIT["rdx"])}.get(row["how"][0], 0)


def _goes_back(entry: Batch, row: Batch, newest: Batch, history: History, returns: Collection[str]) -> bool:
    """True if the exit `row` is where the call `newest`, made by the same thread, ends: at the older `entry`.

    It is if the CPU has not switched since that call. If what comes back is not what the caller had, it is what the
    call was told to load: an older context of the caller's, kept in its own memory and perhaps changed there.

    returns: the registers that a call may change.
    """
    if not len(newest) or newest["seq"][0] <= entry["seq"][0] or not is_call(newest)[0]:
        return False
    changed = gprs(newest) != gprs(row)
    changed[:, [GPR64.index(name) for name in (*returns, "rsp")]] = False
    return bool(changed.any()) and not switched_since(newest, row, history)


def _made(rows: Rows, calls: Calls) -> Bools:
    """True where the row is one of `calls`."""
    number = rows["rax"]
    made: Bools = np.where(_by_ia32(rows), np.isin(number, calls.ia32), np.isin(number, calls.native))
    return made & is_call(rows)


def _by_ia32(rows: Rows) -> Bools:
    """True where a call is one of ia32's: by number, and by the registers of its arguments."""
    ia32: Bools = (rows["how"] == How.SOFT) | (rows["how"] == How.SYSENTER) | (rows["flags"] & Flag.LINEAR32 != 0)
    return ia32
