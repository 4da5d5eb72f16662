"""Contexts that change or begin on purpose: replaced by a system call that the profile names, or begun anew.

A signal handler's return replaces its caller's context, a tracer's call that of the tracee. A new context (a handler,
a fork's child) begins where others began before, with the same registers as often as not, and may be interrupted at
its first instruction: at such an address a context alike is no proof of anything.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np

from gdbext.arch import flags as rf
from gdbext.arch import vectors
from gdbext.arch.registers import GPR64
from gdbext.events.columns import Columns, Rows, grouped
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.ledger.compare import BIT, TAKEN_BY_CALL, U64, Bools, few_words_apart, gprs, is_call, is_user, space
from gdbext.rules.fastcalls import INT_BYTES, is_fast
from gdbext.rules.history import History
from gdbext.rules.policy import Calls, Policy
from gdbext.rules.stacklost import switched_since

BEGINNINGS: Final = 1024
"""Addresses remembered at which contexts began; beyond it the oldest is forgotten."""

MASK32: Final = (1 << 32) - 1
SIGNATURES: Final = 1 << 16
"""Values remembered that may be signatures of restartable sequences; beyond it the oldest is forgotten."""
LEAST: Final = 1 << 24
"""The lowest value taken for a signature of 32 bits where nobody has said which call names one: lengths, descriptors
and flags are lower, and code is full of them."""
NATIVE: Final = [GPR64.index(name) for name in ("rdi", "rsi", "rdx", "r10", "r8", "r9")]
IA32: Final = [GPR64.index(name) for name in ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp")]
"""The registers in which system calls take their arguments, in order: 64-bit code's, and ia32's."""

SELECTOR_BITS: Final = 0xFFFC
"""What an error code holds of a selector (Intel SDM vol. 3A, 6.13)."""
_NO_SELECTOR: Final = 3
"""An error code with one of these bits is of an event from outside, or names a gate."""
_REFUSALS: Final = (vectors.NP, vectors.SS, vectors.GP)

_BASES: Final = int(BIT["fs_base"] | BIT["gs_base"])
_TRACKED: Final = sum(int(BIT[f"tracked{slot}"]) for slot in range(4))


class Redirects:
    """Which of the differences that an exit shows were asked for."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._edits = np.empty(0, np.uint64)
        self._signatures: dict[int, int] = {}
        """Words that may lie in front of the addresses at which restartable sequences go on, and the event in which
        each was first handed to the kernel; the latest last."""
        self._beginnings: dict[int, None] = {}  # a dict keeps the order of insertion

    def begin(self, batch: Columns) -> None:
        """`batch` is about to be judged: note its calls that edit other contexts, and those that name signatures."""
        policy = self._policy
        calls = batch.take(np.flatnonzero((batch["kind"] == Kind.ENTRY) & is_call(batch)))
        if policy.edits_others:
            self._edits = np.concatenate((self._edits[-1:], calls["seq"][_made(calls, policy.edits_others)]))
        if policy.names_aborts:
            named = calls.take(np.flatnonzero(_made(calls, policy.names_aborts)))
            self._sign(named, _arguments(named)[:, 3:4] & np.uint64(MASK32), least=1)
        elif not policy.user_redirects:
            self._sign(calls, _arguments(calls), LEAST)

    def _sign(self, calls: Columns, values: U64, least: int) -> None:
        """Remember those `values`, a row for each of `calls`, that have 32 bits and are not below `least`."""
        row, column = np.nonzero(values - np.uint64(least) <= np.uint64(MASK32 - least))
        groups = grouped(values[row, column])
        order = np.argsort(groups.last)
        events = calls["seq"][row[groups.first[order]]]
        for value, event in zip(groups.distinct[order].tolist(), events.tolist(), strict=True):
            self._signatures[value] = self._signatures.pop(value, event)
        while len(self._signatures) > SIGNATURES:
            del self._signatures[next(iter(self._signatures))]

    def excused(self, entry: Batch, row: Batch, newest: Batch, history: History) -> int:
        """The mask of the differences between `entry` and the exit `row` that a system call asked for.

        newest: as for :meth:`replaced`. Bases are not a part of what a 64-bit handler's return replaces; nor is the FPU
        where code that a device interrupted has everything else back: no handler means to change that alone.
        """
        if not is_user(row)[0]:
            return _refused_selector(entry, row)
        first, last = np.searchsorted(self._edits, (entry["seq"][0], row["seq"][0]))
        if first < last:
            return 0xFFFF_FFFF & ~_TRACKED
        if self.replaced(row, newest, after=int(entry["seq"][0])) or (
            not self._policy.replaces_own and _goes_back(entry, row, newest, history, self._policy.syscall_returns)
        ):
            kept = _TRACKED if row["flags"][0] & Flag.LINEAR32 else _TRACKED | _BASES
            kept |= int(BIT["simd"]) if _came_back(entry, row) else 0
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
        and the stack pointer, which is another stack's. (A call returns once: what comes again is another thread.)
        """
        if not bool(is_user(row)[0]):
            return False
        past = history.before(int(row["seq"][0]))
        return self._returned(past, row, (space(past) == space(row)) & ~few_words_apart(past["rsp"], row["rsp"]))

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
        changed[:, [GPR64.index(name) for name in (*self._policy.syscall_returns, *TAKEN_BY_CALL, "rsp")]] = False
        like = calls[~changed.any(axis=1)][-1:]
        if not len(like):
            return False
        back = (past["kind"] == Kind.EXIT) & (past["rsp"] == like["rsp"]) & (past["rip"] == row["rip"])
        back &= space(past) == space(like)
        return bool((back & (past["seq"] > like["seq"])).any())

    def signed(self, row: Batch) -> bool:
        """True if in front of where the exit `row` goes lies what a call named as the signature of such places: a
        restartable sequence goes on there. Where no profile says which call does, any argument of any call counts."""
        event = int(row["seq"][0])
        return self._signatures.get(int(row["value"][0]), event) < event

    def unsigned(self, row: Batch) -> bool:
        """True if it is known that no restartable sequence goes on where the exit `row` goes."""
        return not self._policy.user_redirects or bool(row["value"][0] and self._signatures)

    def began(self, rip: int) -> None:
        """An exit to `rip` begins a context that nothing known was interrupted in."""
        self._beginnings.pop(rip, None)
        self._beginnings[rip] = None
        if len(self._beginnings) > BEGINNINGS:
            del self._beginnings[next(iter(self._beginnings))]

    def begin_at(self, rips: U64) -> Bools:
        """True where contexts began before."""
        return np.isin(rips, np.fromiter(self._beginnings, np.uint64))

    def begins(self, rip: int) -> bool:
        """True if contexts began before at `rip`."""
        return rip in self._beginnings


def _came_back(entry: Batch, row: Batch) -> bool:
    """True if what a device interrupted has come back with its general registers, RIP and flags."""
    same = (gprs(entry) == gprs(row)).all() and entry["rip"][0] == row["rip"][0]
    return bool(same and not (entry["rflags"][0] ^ row["rflags"][0]) & ~np.uint64(rf.RF)) and (
        entry["how"][0] == How.INTERRUPT
    )


def _refused_selector(entry: Batch, row: Batch) -> int:
    """The mask of the register from which kernel code loaded the selector that the exception `entry` refuses, by its
    error code: the handler puts another one there before `row` tries again (0: there is none)."""
    refused = int(entry["error"][0])
    if entry["vector"][0] not in _REFUSALS or not refused or refused & _NO_SELECTOR or entry["rip"][0] != row["rip"][0]:
        return 0
    was, now = gprs(entry)[0], gprs(row)[0]
    others = (was != now) & (was & np.uint64(SELECTOR_BITS) == np.uint64(refused))
    return sum(int(BIT[GPR64[place]]) for place in np.flatnonzero(others))


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
    changed[:, [GPR64.index(name) for name in (*returns, *TAKEN_BY_CALL, "rsp")]] = False
    return bool(changed.any()) and not switched_since(newest, row, history)


def _made(rows: Rows, calls: Calls) -> Bools:
    """True where the row is one of `calls`."""
    number = rows["rax"]
    made: Bools = np.where(_by_ia32(rows), np.isin(number, calls.ia32), np.isin(number, calls.native))
    return made & is_call(rows)


def _arguments(calls: Columns) -> U64:
    """Six for each of `calls`, in order."""
    registers = calls.gprs()
    arguments, ia32 = registers[:, NATIVE], _by_ia32(calls)
    arguments[ia32] = registers[ia32][:, IA32]
    return arguments


def _by_ia32(rows: Rows) -> Bools:
    """True where a call is one of ia32's: by number, and by the registers of its arguments."""
    ia32: Bools = (rows["how"] == How.SOFT) | (rows["how"] == How.SYSENTER) | (rows["flags"] & Flag.LINEAR32 != 0)
    return ia32
