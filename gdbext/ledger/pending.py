"""The pending contexts: interrupted, not yet resumed, over all CPUs. A bounded store of event rows, found by traits.

A long-running guest leaves thousands of contexts that are never resumed (threads that died in a system call), so that
nothing here looks at all of them: each is entered under its traits.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gdbext.arch.frames import word_size
from gdbext.events.columns import Columns
from gdbext.events.row import ROW, Batch, pick, words
from gdbext.ledger.compare import U64, Bools, gprs, is_user, keys, space

CAPACITY: Final = 4096
"""Contexts kept; beyond it the oldest is forgotten (a thread that died suspended is never resumed)."""
REACH_BYTES: Final = 64
"""How far apart two frames can be and still be called near."""
UNLIKE: Final = 2
"""General registers besides RSP in which two contexts can differ and still be called alike."""
_THIRDS: Final = ((0, 1, 2, 8, 9), (3, 5, 10, 11, 12), (6, 7, 13, 14, 15))
"""The registers besides RSP in UNLIKE + 1 groups: of two contexts that are alike, one group is the same. Each has
registers that 32-bit code uses."""
_RSP: Final = 4
_GROUPED: Final = np.array([number for third in _THIRDS for number in third])


class Traits(NamedTuple):
    """What a context is found by. key: see :func:`gdbext.ledger.compare.keys`.  thread: address space, FS base, and
    whether it is user code.  frame: CPU, bits of the handler, address.  registers: the general registers by group."""

    key: int
    thread: tuple[int, int, bool]
    frame: tuple[int, int, int]
    registers: tuple[bytes, ...]


def traits(rows: Columns) -> list[Traits]:
    """The traits of each row."""
    threads = zip(space(rows).tolist(), rows["fs_base"].tolist(), is_user(rows).tolist(), strict=True)
    frames = zip(rows["cpu"].tolist(), rows["mode"].tolist(), rows["frame"].tolist(), strict=True)
    third = 8 * len(_THIRDS[0])
    raw = np.ascontiguousarray(rows.gprs()[:, _GROUPED]).tobytes()
    groups = [
        tuple(raw[at + start : at + start + third] for start in range(0, 3 * third, third))
        for at in range(0, len(raw), 3 * third)
    ]
    return [Traits(*parts) for parts in zip(keys(rows).tolist(), threads, frames, groups, strict=True)]


class Pending:
    """Rows of entries. The newest of equal keys comes first, as on a stack."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._rows: Batch = np.zeros(0, ROW)
        self._registers = np.zeros((0, 16), np.uint64)
        self._traits: dict[int, Traits] = {}  # by number, oldest first: a dict keeps the order of insertion
        self._numbers: dict[Hashable, dict[int, None]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._traits)

    def add(self, row: Batch, found_by: Traits) -> None:
        """Remember the entry `row` (a batch of one)."""
        if self._rows.dtype != row.dtype or not len(self._rows):
            self._begin(row)
        number = self._next
        self._next += 1
        self.take(number - self._capacity)
        slot = number % self._capacity
        words(self._rows)[slot] = words(row)[0]
        self._registers[slot] = gprs(row)[0]
        self._traits[number] = found_by
        for trait in _entries(found_by):
            self._numbers.setdefault(trait, {})[number] = None

    def find(self, key: int) -> list[int]:
        """Numbers of the contexts with this key, newest first."""
        return list(self._numbers.get(key, ()))[::-1]

    def rows(self, numbers: Sequence[int] | npt.NDArray[np.intp]) -> Batch:
        """The rows of these numbers."""
        if not len(numbers):
            return self._rows[:0]
        return pick(self._rows, np.array(numbers, np.intp) % self._capacity)

    def take(self, number: int) -> None:
        """The context of this number was resumed."""
        gone = self._traits.pop(number, None)
        if gone is None:
            return
        for trait in _entries(gone):
            group = self._numbers[trait]
            del group[number]
            if not group:
                del self._numbers[trait]

    def all(self) -> Batch:
        """Every pending row, oldest first."""
        return self.rows(list(self._traits))

    def thread(self, found_by: Traits) -> Batch:
        """The contexts of the same thread, as far as registers tell, oldest first."""
        return self.rows(self.of_thread(found_by))

    def of_thread(self, found_by: Traits) -> list[int]:
        """The numbers of the same."""
        return list(self._numbers.get(("thread", *found_by.thread), ()))

    def near(self, found_by: Traits) -> Batch:
        """The contexts whose frame lies within REACH_BYTES of this one's, but not at it, oldest first."""
        cpu, mode, frame = found_by.frame
        size = word_size(mode)
        places = [("frame", mode, frame + step) for step in range(size - REACH_BYTES, REACH_BYTES, size) if step]
        numbers = sorted(number for place in places for number in self._numbers.get(place, ()))
        return self.rows([number for number in numbers if self._traits[number].frame[0] == cpu])

    def at_frame(self, mode: int, frame: int) -> list[int]:
        """Numbers of the contexts whose frame is at this address, on whatever CPU, newest first."""
        return list(self._numbers.get(("frame", mode, frame), ()))[::-1]

    def alike(self, registers: U64, found_by: Traits) -> Batch:
        """The contexts that differ from these sixteen `registers` in UNLIKE of them at most, oldest first."""
        groups = [self._numbers[group] for group in enumerate(found_by.registers) if group in self._numbers]
        if not groups:
            return self._rows[:0]
        numbers = np.array(list(set().union(*groups)), np.intp)
        return self.rows(np.sort(numbers[are_alike(self._registers[numbers % self._capacity], registers)]))

    def _begin(self, row: Batch) -> None:
        """Allocate for this dtype; a source never changes its row in mid-stream."""
        self._rows = np.zeros(self._capacity, row.dtype)
        self._registers = np.zeros((self._capacity, 16), np.uint64)
        self._traits.clear()
        self._numbers.clear()
        self._next = 0


def are_alike(many: U64, one: U64) -> Bools:
    """True for each row of the (n, 16) general registers that differs from `one` in UNLIKE besides RSP at most."""
    equal = many == one
    equal[:, _RSP] = False
    found: Bools = np.count_nonzero(equal, axis=1) >= 15 - UNLIKE
    return found


def _entries(found_by: Traits) -> Iterator[Hashable]:
    """The names under which a context is entered; those of different traits differ in form."""
    yield found_by.key
    yield ("thread", *found_by.thread)
    _, mode, frame = found_by.frame
    yield ("frame", mode, frame)
    yield from enumerate(found_by.registers)
