"""The pending contexts: interrupted, not yet resumed, over all CPUs. A bounded store of event rows, found by traits.

A long-running guest leaves thousands of contexts that are never resumed (threads that died in a system call), so that
nothing here looks at all of them: each is entered under its traits.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gdbext.arch.addresses import MASK64
from gdbext.arch.frames import word_size
from gdbext.events.columns import SPREAD, Columns
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
    """What a context is found by. key: see :func:`gdbext.ledger.compare.keys`.  thread: a hash of address space, FS
    base, and whether it is user code.  stack: one of thread and RSP, of 32-bit code.  frame: CPU, bits of the handler,
    address.  place: a hash of frame and RSP, of kernel code.  registers: one of each group of the general registers.
    rsp: the stack pointer.  call: RIP of a system call, else 0."""

    key: int
    thread: int
    stack: int
    frame: tuple[int, int, int]
    place: int
    registers: list[int]
    rsp: int
    call: int


def traits(rows: Columns) -> list[Traits]:
    """The traits of each row."""
    thread = threads(rows)
    small = (rows["flags"] & Flag.LINEAR32) != 0
    stacks = np.where(small, mixed(thread, rows["rsp"], np.uint64(0)), np.uint64(0))
    calls = np.where(is_call(rows), rows["rip"], np.uint64(0))
    frames = zip(*(rows[name].tolist() for name in ("cpu", "mode", "frame")), strict=True)
    columns = keys(rows), thread, stacks, places(rows), rows.gprs() @ _WEIGHTS, rows["rsp"], calls
    key, own, stack, place, groups, rsp, call = (column.tolist() for column in columns)
    return list(map(Traits, key, own, stack, frames, place, groups, rsp, call))


def places(rows: Columns) -> U64:
    """A hash of each row's frame and RSP where it is kernel code's, else 0."""
    place = mixed(rows["frame"], rows["rsp"], rows["mode"].astype(np.uint64))
    return np.where(is_user(rows), np.uint64(0), place)


def threads(rows: Columns) -> U64:
    """A hash of each row's thread, as far as registers tell."""
    return rows.derived("threads", _threads)


def _threads(rows: Columns) -> U64:
    return mixed(space(rows), rows["fs_base"], is_user(rows).astype(np.uint64))


_Index = dict[Any, dict[int, None]]
"""The numbers of the contexts with one trait, oldest first: a dict keeps the order of insertion."""


class Pending:
    """Rows of entries. The newest of equal keys comes first, as on a stack."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._rows: Batch = np.zeros(0, ROW)
        self._dtype: np.dtype[np.void] | None = None
        self._words = words(self._rows)
        self._traits: dict[int, Traits] = {}  # by number, oldest first
        self._keys: _Index = {}
        self._threads: _Index = {}
        self._stacks: _Index = {}
        self._frames: dict[tuple[int, int, int], _Index] = {}
        """By CPU, mode, and which REACH_BYTES it lies in: the contexts by their frame."""
        self._places: _Index = {}
        self._groups = np.zeros((0, len(_THIRDS)), np.uint64)
        self._numbers = np.zeros(0, np.intp)
        self._waits = np.zeros(0, bool)
        """Whether the context in each slot is still pending."""
        self._rsp = np.zeros(0, np.uint64)
        self._calls = np.zeros(0, np.uint64)
        """RIP of each that is a system call, else 0."""
        self._next = 0

    def __len__(self) -> int:
        return len(self._traits)

    def add(self, row: Batch, found_by: Traits) -> None:
        """Remember the entry `row` (a batch of one)."""
        if row.dtype is not self._dtype:
            self._begin(row)
        number = self._next
        self._next += 1
        self.take(number - self._capacity)
        slot = number % self._capacity
        self._words[slot] = row.view("<u8")
        self._groups[slot] = found_by.registers
        self._numbers[slot] = number
        self._waits[slot] = True
        self._rsp[slot] = found_by.rsp
        self._calls[slot] = found_by.call
        self._traits[number] = found_by
        for index, trait in self._entries(found_by):
            index.setdefault(trait, {})[number] = None

    def find(self, key: int) -> list[int]:
        """Numbers of the contexts with this key, newest first."""
        found = self._keys.get(key)
        return list(found)[::-1] if found else []

    def rows(self, numbers: Sequence[int] | npt.NDArray[np.intp]) -> Batch:
        """The rows of these numbers."""
        if not len(numbers):
            return self._rows[:0]
        if len(numbers) == 1:
            row: Batch = self._words[int(numbers[0]) % self._capacity].copy().view(self._rows.dtype)
            return row
        return pick(self._rows, np.array(numbers, np.intp) % self._capacity)

    def take(self, number: int) -> None:
        """The context of this number was resumed."""
        gone = self._traits.pop(number, None)
        if gone is None:
            return
        self._waits[number % self._capacity] = False
        for index, trait in self._entries(gone):
            group = index[trait]
            del group[number]
            if not group:
                del index[trait]
        if not self._frames.get(_block(gone.frame), True):
            del self._frames[_block(gone.frame)]

    def all(self) -> Batch:
        """Every pending row, oldest first."""
        return self.rows(list(self._traits))

    def columns(self) -> Columns:
        """Every pending row, in any order."""
        return Columns(self._rows).take(np.flatnonzero(self._waits))

    def thread(self, found_by: Traits) -> Batch:
        """The contexts of the same thread, as far as registers tell, oldest first."""
        return self.rows(list(self._threads.get(found_by.thread, ())))

    def newest(self, found_by: Traits) -> Batch:
        """The last of them (a batch of one, or empty)."""
        waiting = self._threads.get(found_by.thread)
        return self.rows([next(reversed(waiting))]) if waiting else self._rows[:0]

    def calls_at(self, rip: int) -> Batch:
        """The system calls that return to `rip`, oldest first."""
        rows = self._in_slots(self._calls == rip)
        return pick(rows, is_call(rows))

    def on_rsp(self, rsp: int) -> Batch:
        """The contexts with this RSP, oldest first."""
        return self._in_slots(self._rsp == rsp)

    def at_stack(self, found_by: Traits) -> list[int]:
        """Numbers of those of them, if they are 32-bit code, that have the same RSP, too, oldest first."""
        return list(self._stacks.get(found_by.stack, ()))

    def near(self, found_by: Traits) -> Batch:
        """The contexts of its CPU and mode whose frame lies within REACH_BYTES of this one's, words away, but not at
        it, oldest first."""
        cpu, mode, frame = found_by.frame
        size, block = word_size(mode), _block(found_by.frame)[2]
        numbers: list[int] = []
        for beside in (block - 1, block, block + 1):
            for at, waiting in self._frames.get((cpu, mode, beside), {}).items():
                if 0 < abs(at - frame) < REACH_BYTES and (at - frame) % size == 0:
                    numbers += waiting
        return self.rows(sorted(numbers))

    def at_place(self, found_by: Traits) -> list[int]:
        """Numbers of the kernel's contexts with the frame and the RSP of this one, on whatever CPU, newest first."""
        return list(self._places.get(found_by.place, ()))[::-1]

    def alike(self, registers: U64, found_by: Traits) -> Batch:
        """The contexts that differ from these sixteen `registers` in UNLIKE of them at most, oldest first."""
        some = (self._groups == np.array(found_by.registers, np.uint64)).any(axis=1)
        rows = self._in_slots(some)
        return pick(rows, are_alike(gprs(rows), registers))

    def _in_slots(self, some: Bools) -> Batch:
        """The contexts in `some` of the slots, oldest first."""
        return self.rows(np.sort(self._numbers[some & self._waits]))

    def _entries(self, found_by: Traits) -> Iterator[tuple[_Index, Hashable]]:
        """Where a context is entered, and under what."""
        yield self._keys, found_by.key
        yield self._threads, found_by.thread
        if found_by.frame[2]:
            yield self._frames.setdefault(_block(found_by.frame), {}), found_by.frame[2]
        if found_by.place:
            yield self._places, found_by.place
        if found_by.stack:
            yield self._stacks, found_by.stack

    def _begin(self, row: Batch) -> None:
        """Allocate for this dtype; a source never changes its row in mid-stream."""
        self._dtype = row.dtype
        if self._rows.dtype == row.dtype and len(self._rows):
            return
        self._rows = np.zeros(self._capacity, row.dtype)
        self._words = words(self._rows)
        self._groups = np.zeros((self._capacity, len(_THIRDS)), np.uint64)
        self._numbers = np.zeros(self._capacity, np.intp)
        self._waits = np.zeros(self._capacity, bool)
        self._rsp, self._calls = np.zeros((2, self._capacity), np.uint64)
        self._traits.clear()
        for index in (self._keys, self._threads, self._stacks, self._frames, self._places):
            index.clear()
        self._next = 0


def _block(frame: tuple[int, int, int]) -> tuple[int, int, int]:
    """What the frames within REACH_BYTES of a frame are entered under: this one, or that beside it."""
    cpu, mode, address = frame
    return cpu, mode, address // REACH_BYTES


def are_alike(many: U64, one: U64) -> Bools:
    """True for each row of the (n, 16) general registers that differs from `one` in UNLIKE besides RSP at most."""
    equal = many == one
    equal[:, _RSP] = False
    found: Bools = np.count_nonzero(equal, axis=1) >= ALIKE
    return found
