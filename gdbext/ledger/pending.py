"""The pending contexts: interrupted, not yet resumed, over all CPUs. A bounded store of event rows, found by traits.

A long-running guest leaves thousands of contexts that are never resumed (threads that died in a system call), so that
nothing here looks at all of them: each is entered under its traits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from gdbext.arch.addresses import MASK64
from gdbext.arch.frames import word_size
from gdbext.events.columns import SPREAD, Array, Columns, Indices
from gdbext.events.row import ROW, Batch, Flag, pick, words
from gdbext.ledger.compare import U64, Bools, gprs, is_call, is_user, keys, mixed, space

CAPACITY: Final = 4096
"""Contexts kept; beyond it the oldest is forgotten (a thread that died suspended is never resumed)."""
REACH_BYTES: Final = 64
"""How far apart two frames can be and still be called near."""
UNLIKE: Final = 2
"""General registers besides RSP in which two contexts can differ and still be called alike."""
ALIKE: Final = 15 - UNLIKE
"""How many of the 15 must agree."""
_THIRDS: Final = ((0, 1, 2, 8, 9), (3, 5, 10, 11, 12), (6, 7, 13, 14, 15))
"""The registers besides RSP in UNLIKE + 1 groups: of two contexts that are alike, one group is the same. Each has
registers that 32-bit code uses."""
_RSP: Final = 4
_WEIGHTS: Final = np.zeros((16, UNLIKE + 1), np.uint64)
"""What each register counts for in the hash of its group."""
for _group, _third in enumerate(_THIRDS):
    for _register in _third:
        _WEIGHTS[_register, _group] = SPREAD ** (_register + 1) & MASK64


class Traits(NamedTuple):
    """What contexts are found by, an array each; of one context arrays of one.

    key: see :func:`gdbext.ledger.compare.keys`.  thread: a hash of address space, FS base, and whether it is user code.
    stack: one of thread and RSP, of 32-bit code, else 0.  place: a hash of frame and RSP, of kernel code, else 0.
    registers: a hash of each group of the general registers, (n, 3).  call: whether it is a system call.
    """

    key: Array
    thread: Array
    stack: Array
    place: Array
    registers: Array
    cpu: Array
    mode: Array
    frame: Array
    rip: Array
    rsp: Array
    call: Array

    def of(self, which: slice) -> Traits:
        """The traits of some of them."""
        return Traits(*(column[which] for column in self))


def traits(rows: Columns) -> Traits:
    """The traits of each row."""
    thread, rsp = threads(rows), rows["rsp"]
    small = (rows["flags"] & Flag.LINEAR32) != 0
    stack = np.where(small, mixed(thread, rsp, np.uint64(0)), np.uint64(0))
    cpu, mode, frame, rip = (rows[name] for name in ("cpu", "mode", "frame", "rip"))
    registers = rows.gprs() @ _WEIGHTS
    return Traits(keys(rows), thread, stack, places(rows), registers, cpu, mode, frame, rip, rsp, is_call(rows))


class Where(NamedTuple):
    """What tells an exit that is meant for a context from others; see :class:`Traits`."""

    key: Array
    thread: Array
    frame: Array
    rip: Array

    @classmethod
    def of(cls, rows: Columns) -> Where:
        """Where each of the contexts `rows` is."""
        return cls(keys(rows), threads(rows), rows["frame"], rows["rip"])


def places(rows: Columns) -> U64:
    """A hash of each row's frame and RSP where it is kernel code's, else 0."""
    place = mixed(rows["frame"], rows["rsp"], rows["mode"].astype(np.uint64))
    return np.where(is_user(rows), np.uint64(0), place)


def threads(rows: Columns) -> U64:
    """A hash of each row's thread, as far as registers tell."""
    return rows.derived("threads", _threads)


def _threads(rows: Columns) -> U64:
    return mixed(space(rows), rows["fs_base"], is_user(rows).astype(np.uint64))


class Pending:
    """Rows of entries, each with its number. The newest of equal keys comes first, as on a stack."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._rows: Batch = np.zeros(0, ROW)
        self._traits = traits(Columns(self._rows))
        self._numbers = np.zeros(0, np.intp)
        self._waits = np.zeros(0, bool)
        """Whether the context in each slot is still pending."""
        self._next = 0

    def __len__(self) -> int:
        return int(np.count_nonzero(self._waits))

    def add(self, rows: Batch, found_by: Traits) -> None:
        """Remember the entries `rows`, in order."""
        if not len(self._rows):
            self._begin(rows.dtype, found_by)
        last = slice(max(len(rows) - self._capacity, 0), len(rows))
        numbers = self._next + np.arange(last.start, last.stop)
        slots = numbers % self._capacity
        words(self._rows)[slots] = words(rows)[last]
        for known, new in zip(self._traits, found_by.of(last), strict=True):
            known[slots] = new
        self._numbers[slots] = numbers
        self._waits[slots] = True
        self._next += len(rows)

    def find(self, key: Array | int) -> list[int]:
        """Numbers of the contexts with this key, newest first."""
        return self._in_order(np.flatnonzero(self._traits.key == key))[::-1]

    def rows(self, numbers: Sequence[int]) -> Batch:
        """The rows of these numbers."""
        if not numbers:
            return self._rows[:0]
        return pick(self._rows, np.array(numbers, np.intp) % self._capacity)

    def take(self, number: int) -> None:
        """The context of this number was resumed."""
        self._waits[self._numbers == number] = False

    def all(self) -> Batch:
        """Every pending row, oldest first."""
        return self.rows(self._in_order(np.flatnonzero(self._waits)))

    def where(self) -> Where:
        """Where each of them waits, in any order."""
        known = self._traits
        return Where(*(column[self._waits] for column in (known.key, known.thread, known.frame, known.rip)))

    def thread(self, found_by: Traits) -> Batch:
        """The contexts of the same thread, as far as registers tell, oldest first."""
        return self.rows(self._in_order(np.flatnonzero(self._traits.thread == found_by.thread)))

    def newest(self, found_by: Traits) -> Batch:
        """The last of them (a batch of one, or empty)."""
        return self.rows(self._in_order(np.flatnonzero(self._traits.thread == found_by.thread))[-1:])

    def calls_at(self, rip: int) -> Batch:
        """The system calls that return to `rip`, oldest first."""
        return self.rows(self._in_order(np.flatnonzero(self._traits.call & (self._traits.rip == rip))))

    def on_rsp(self, rsp: int) -> Batch:
        """The contexts with this RSP, oldest first."""
        return self.rows(self._in_order(np.flatnonzero(self._traits.rsp == rsp)))

    def at_stack(self, found_by: Traits) -> list[int]:
        """Numbers of those of its thread, if they are 32-bit code, that have the same RSP, too, oldest first."""
        return self._in_order(np.flatnonzero((self._traits.stack == found_by.stack) & (found_by.stack != 0)))

    def near(self, found_by: Traits) -> Batch:
        """The contexts of its CPU and mode whose frame lies within REACH_BYTES of this one's, words away, but not at
        it, oldest first."""
        reach, word = np.uint64(REACH_BYTES - 1), np.uint64(word_size(int(found_by.mode[0])))
        slots = np.flatnonzero(self._traits.frame - found_by.frame + reach <= 2 * reach)
        cpu, mode, frame = (column[slots] for column in (self._traits.cpu, self._traits.mode, self._traits.frame))
        away = frame - found_by.frame
        near = (away != 0) & (away % word == 0) & (frame != 0) & (cpu == found_by.cpu) & (mode == found_by.mode)
        return self.rows(self._in_order(slots[near]))

    def at_place(self, found_by: Traits) -> list[int]:
        """Numbers of the kernel's contexts with the frame and the RSP of this one, on whatever CPU, newest first."""
        return self._in_order(np.flatnonzero((self._traits.place == found_by.place) & (found_by.place != 0)))[::-1]

    def alike(self, registers: U64, found_by: Traits) -> Batch:
        """The contexts that differ from these sixteen `registers` in UNLIKE of them at most, oldest first."""
        first, second, third = (self._traits.registers == found_by.registers).T
        rows = self.rows(self._in_order(np.flatnonzero(first | second | third)))
        return pick(rows, are_alike(gprs(rows), registers))

    def _in_order(self, slots: Indices) -> list[int]:
        """The numbers of those that wait in `slots`, oldest first."""
        return sorted(self._numbers[slots[self._waits[slots]]].tolist())

    def _begin(self, dtype: np.dtype[np.void], like: Traits) -> None:
        """Allocate for rows of this type; a source never changes its row in mid-stream."""
        self._rows = np.zeros(self._capacity, dtype)
        self._traits = Traits(*(np.zeros((self._capacity, *column.shape[1:]), column.dtype) for column in like))
        self._numbers = np.full(self._capacity, -1)
        self._waits = np.zeros(self._capacity, bool)


def are_alike(many: U64, one: U64) -> Bools:
    """True for each row of the (n, 16) general registers that differs from `one` in UNLIKE besides RSP at most."""
    equal = many == one
    equal[:, _RSP] = False
    found: Bools = np.count_nonzero(equal, axis=1) >= ALIKE
    return found
