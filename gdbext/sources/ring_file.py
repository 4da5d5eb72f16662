"""The reader's side of a ring file: making it, mapping it, its locks, and taking rows out of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from gdbext.errors import CtxwatchError, EnvironmentUnusable, RecordingError, UsageError
from gdbext.events.row import ROW, ROW_SIMD, SCHEMA_VERSION, Batch, Flag, concat, empty, pick
from gdbext.sources.ring import (
    CONTROL,
    CONTROL_OFFSET,
    DEFAULT_ROWS,
    HEADER,
    HEADER_SIZE,
    MAGIC,
    MEMORY,
    MEMORY_OFFSET,
    READER_LOCK,
    TICKET_MASK,
    VERSION,
    WATCH,
    WATCH_OFFSET,
    WRITER_LOCK,
    Option,
    Release,
    State,
    file_size,
    rings_offset,
)

_F_OFD_GETLK: Final = 36
_F_OFD_SETLK: Final = 37
_FLOCK: Final = struct.Struct("hhxxxxqqixxxx")
"""``struct flock`` where ``off_t`` has 64 bits: type, whence, start, length, pid."""

Columns = npt.NDArray[np.void]


class RingFile:
    """A mapped ring file. Made by :meth:`create`, :meth:`attach` or :meth:`open_leftover`; end it by :meth:`close`.

    header, watch, memory: one, two and one rows of their dtypes, shared with the probe. control: one row per vCPU,
    empty until the probe has attached (:meth:`map_rings`).
    """

    def __init__(self, path: Path, handle: int, writable: bool, ours: bool) -> None:
        self.path = path
        self._handle = handle
        self._access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._ours = ours
        self._map = mmap.mmap(handle, HEADER_SIZE, access=self._access)
        self.header: Columns = np.frombuffer(self._map, HEADER, 1)
        self.watch: Columns = np.frombuffer(self._map, WATCH, 2, WATCH_OFFSET)
        self.memory: Columns = np.frombuffer(self._map, MEMORY, 1, MEMORY_OFFSET)
        self.control: Columns = np.empty(0, CONTROL)
        self._rings: list[Batch] = []

    @classmethod
    def create(cls, path: Path) -> RingFile:
        """Make the file for a QEMU that is about to start, and be its reader from the first event on."""
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise UsageError(f"the ring {path} exists", "another watch uses it, or it was left by one") from None
        except OSError as error:
            raise EnvironmentUnusable(f"cannot make the ring {path}", error.strerror or "") from error
        try:
            os.posix_fallocate(handle, 0, HEADER_SIZE)  # a full file system is an error here, SIGBUS later
            _expect_room(handle)
            ring = cls(path, handle, writable=True, ours=True)
        except OSError as error:
            os.close(handle)
            path.unlink(missing_ok=True)
            todo = "free some space there" if error.errno == errno.ENOSPC else ""
            raise EnvironmentUnusable(f"no room for the ring {path}", error.strerror or "", todo) from error
        head = ring.header
        head["version"], head["schema"], head["magic"] = VERSION, SCHEMA_VERSION, MAGIC
        ring._become_reader()
        return ring

    @classmethod
    def attach(cls, path: Path) -> RingFile:
        """Become the reader of a running probe's ring that has none. Raises UsageError when it has one."""
        ring = cls._open(path, writable=True)
        try:
            if not ring.writer_lives():
                raise UsageError(f"no QEMU writes to {path} any more", todo=f"ctxwatch replay {path}")
            ring.map_rings()
            ring._become_reader()
        except CtxwatchError:
            ring.close()
            raise
        return ring

    @classmethod
    def open_leftover(cls, path: Path) -> RingFile:
        """Open a ring to look at what is in it, without taking part; it stays as it is."""
        ring = cls._open(path, writable=False)
        try:
            ring.map_rings()
        except CtxwatchError:
            ring.close()
            raise
        return ring

    @classmethod
    def _open(cls, path: Path, writable: bool) -> RingFile:
        try:
            handle = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except OSError as error:
            raise RecordingError(f"cannot open the ring {path}", error.strerror or "") from error
        try:
            if os.fstat(handle).st_size < HEADER_SIZE or os.pread(handle, 8, 0) != MAGIC.to_bytes(8, "little"):
                raise RecordingError(f"{path} is not a ring of the probe")
            ring = cls(path, handle, writable, ours=False)
        except (CtxwatchError, OSError, ValueError) as error:
            os.close(handle)
            if isinstance(error, CtxwatchError):
                raise
            raise RecordingError(f"cannot map the ring {path}", str(error)) from error
        version, schema = int(ring.header["version"][0]), int(ring.header["schema"][0])
        if (version, schema) != (VERSION, SCHEMA_VERSION):
            ring.close()
            why = f"it is version {version}.{schema}, this ctxwatch reads {VERSION}.{SCHEMA_VERSION}"
            raise RecordingError(f"cannot read the ring {path}", why)
        return ring

    def map_rings(self) -> None:
        """Map what the probe has added. Raises EnvironmentUnusable when it refused to start or did not come."""
        state = int(self.header["state"][0])
        if state == State.FAILED:
            raise EnvironmentUnusable("the probe cannot start", bytes(self.header["error"][0]).decode(errors="replace"))
        if state == State.EMPTY:
            raise EnvironmentUnusable(
                "the probe is not loaded", "QEMU did not open the ring", "check its -plugin option"
            )
        cpus, rows, row_size = (int(self.header[name][0]) for name in ("cpus", "rows", "row_size"))
        size = os.fstat(self._handle).st_size
        sound = 0 < cpus <= 65536 and 0 < rows <= 1 << 24 and row_size in (ROW.itemsize, ROW_SIMD.itemsize)
        if not sound or size < file_size(cpus, rows, row_size):
            raise RecordingError(f"the ring {self.path} is damaged", "its header and its size do not fit")
        self._map = mmap.mmap(self._handle, size, access=self._access)
        self.header = np.frombuffer(self._map, HEADER, 1)
        self.watch = np.frombuffer(self._map, WATCH, 2, WATCH_OFFSET)
        self.memory = np.frombuffer(self._map, MEMORY, 1, MEMORY_OFFSET)
        self.control = np.frombuffer(self._map, CONTROL, cpus, CONTROL_OFFSET)
        dtype = ROW_SIMD if row_size == ROW_SIMD.itemsize else ROW
        offset = rings_offset(cpus)
        self._rings = [np.frombuffer(self._map, dtype, rows, offset + cpu * rows * row_size) for cpu in range(cpus)]

    def has(self, option: int) -> bool:
        """Was the probe loaded with this :class:`gdbext.sources.ring.Option`?"""
        return bool(int(self.header["options"][0]) & option)

    def release_all(self, verb: int) -> None:
        """Give all vCPUs that stand still at this moment the same :class:`gdbext.sources.ring.Release`."""
        waiting = self.control["waiting"].copy()
        for cpu in np.flatnonzero(waiting):
            self.control["release"][cpu] = (int(waiting[cpu]) & ~TICKET_MASK) | verb

    def take(self) -> list[Batch]:
        """Take all published rows out of all rings: one array per vCPU that had any, and room for new ones."""
        taken = []
        for cpu, ring in enumerate(self._rings):
            head, tail = int(self.control["head"][cpu]), int(self.control["tail"][cpu])
            if head != tail:
                taken.append(_slice(ring, tail, head))
                self.control["tail"][cpu] = head
        return taken

    @property
    def filling(self) -> bool:
        """True if some ring is a quarter full."""
        return bool((4 * (self.control["head"] - self.control["tail"]) > len(self._rings[0])).any())

    def history(self) -> list[Batch]:
        """Copy the newest rows of each ring, as many as it holds; the first of a ring that lost some says so."""
        return self._before(self.control["head"].copy())

    @property
    def late(self) -> bool:
        """Was the probe there before us? Then it has a past, and perhaps a reader before us that was killed."""
        return not self._ours

    def begin(self) -> list[Batch]:
        """Be present from now on, for a reader that comes late; return what went before. The rest comes by take."""
        self.header["halt"] = self.header["catch"] = 0  # what a killed reader wished
        self.release_all(Release.GO)  # whoever waits for its verdict: seeing us, it would wait for ever
        self.control["tail"][:] = self.control["head"]
        self.header["present"] = 1  # from here on a full ring waits, whatever was overwritten until now
        heads = self.control["head"].copy()
        old = self._before(heads)
        self.control["tail"][:] = heads
        return old

    def _before(self, heads: npt.NDArray[np.void]) -> list[Batch]:
        """The rows in front of `heads` that are still whole: the probe may overwrite some while we copy."""
        found = []
        for cpu, ring in enumerate(self._rings):
            head = int(heads[cpu])
            first = max(0, head - len(ring))
            rows = _slice(ring, first, head)
            # The slot at the head may be half written at any time.
            whole = max(first, int(self.control["head"][cpu]) + 1 - len(ring))
            rows = rows[whole - first :]
            if len(rows):
                rows["flags"][0] |= Flag.STALE if whole else 0
                found.append(rows)
        return found

    def no_rows(self) -> Batch:
        """An empty batch of the ring's row."""
        return empty(0, simd=self.has(Option.SIMD))

    def writer_lives(self) -> bool:
        """Does QEMU still hold the writer's lock, and has it not said that it ends?"""
        return int(self.header["state"][0]) == State.ATTACHED and self._is_locked(WRITER_LOCK)

    def _is_locked(self, byte: int) -> bool:
        asked = _FLOCK.pack(fcntl.F_WRLCK if self._access == mmap.ACCESS_WRITE else fcntl.F_RDLCK, 0, byte, 1, 0)
        answer = _FLOCK.unpack(fcntl.fcntl(self._handle, _F_OFD_GETLK, asked))
        return bool(answer[0] != fcntl.F_UNLCK)

    def _become_reader(self) -> None:
        try:
            fcntl.fcntl(self._handle, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, READER_LOCK, 1, 0))
        except OSError:
            reader = int(self.header["reader"][0])
            raise UsageError(
                f"the ring {self.path} has a reader already", f"process {reader}", "end that one first"
            ) from None
        self.header["reader"] = os.getpid()
        if not len(self.control):
            self.header["present"] = 1

    def close(self) -> None:
        """Let go of it: the probe goes on without a reader. The file is removed if we made it. Idempotent."""
        if self._handle < 0:
            return
        if self._access == mmap.ACCESS_WRITE and self._is_mine():
            self.header["halt"] = self.header["catch"] = 0
            self.header["present"] = 0  # releases whoever waits for room or for a verdict
            # The map keeps the file open, and with it the lock, as long as a view of it lives.
            fcntl.fcntl(self._handle, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, 0, READER_LOCK, 1, 0))
        self.header = self.watch = self.memory = self.control = np.empty(0, HEADER)
        self._rings = []
        with contextlib.suppress(BufferError):  # rows that are views of it may live on
            self._map.close()
        os.close(self._handle)
        self._handle = -1
        if self._ours:
            self.path.unlink(missing_ok=True)

    def _is_mine(self) -> bool:
        return len(self.header) > 0 and int(self.header["reader"][0]) == os.getpid()


def _expect_room(handle: int) -> None:
    """Refuse a file system without room for even one vCPU's ring, before QEMU does; raises OSError."""
    about = os.fstatvfs(handle)
    if about.f_bavail * about.f_frsize < file_size(1, DEFAULT_ROWS, ROW.itemsize) - HEADER_SIZE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _slice(ring: Batch, first: int, last: int) -> Batch:
    """Rows `first` to `last` of a ring, copied, oldest first."""
    size = len(ring)
    low, high = first % size, last % size
    if first == last:
        return empty(0, simd=ring.dtype == ROW_SIMD)
    if low < high:
        return pick(ring, slice(low, high))
    return concat((ring[low:], ring[:high]))


def in_order(parts: list[Batch]) -> Batch | None:
    """The rows of several rings in the order of their numbers, None for no rows."""
    if not parts:
        return None
    rows = concat(parts)
    numbers = rows["seq"]
    return rows if (numbers[1:] > numbers[:-1]).all() else pick(rows, np.argsort(numbers, kind="stable"))


PATIENCE: Final = 5.0
"""Seconds. On a busy machine a vCPU's thread may be away for that long between taking a number and publishing."""


class Merger:
    """Puts the rows of several rings into the order of their numbers.

    A number that is missing belongs to a vCPU that has taken it and not yet published its row: what lies behind is
    held back until it comes, or for `patience` seconds (then it is given up as lost and counted).
    """

    def __init__(self, clock: Callable[[], float], patience: float = PATIENCE) -> None:
        self._clock = clock
        self._patience = patience
        self._held: list[Batch] = []
        self._first = self._next = 1
        self._since: float | None = None
        self.missing = 0

    def start_behind(self, number: int) -> None:
        """Expect all rows behind `number`; of those up to it some may come."""
        self._first = self._next = number + 1

    def merge(self, taken: list[Batch], final: bool = False) -> Batch | None:
        """Add `taken` and return what can be given out in order, or None; with `final` all of it."""
        rows = in_order(self._held + taken)
        if rows is None:
            return None
        numbers = rows["seq"]
        expected = np.arange(self._next, self._next + len(rows), dtype=np.uint64)
        late = int(np.searchsorted(numbers, self._next))  # behind their time: out with them
        gaps = np.flatnonzero(numbers[late:] != expected[: len(rows) - late])
        ready = late + int(gaps[0]) if len(gaps) else len(rows)
        if ready < len(rows) and (final or (not ready and self._overdue())):  # a gap behind what came is another one
            ready = len(rows)
        self._held = [rows[ready:]] if ready < len(rows) else []
        if ready == len(rows):
            self._since = None
        elif self._since is None or ready:
            self._since = self._clock()
        if not ready:
            return None
        out = rows[:ready]
        behind = max(self._next, int(out["seq"][-1]) + 1)
        counted = len(out) - int(np.searchsorted(out["seq"], self._first))
        self.missing += behind - self._next - counted
        self._next = behind
        return out

    def _overdue(self) -> bool:
        return self._since is not None and self._clock() - self._since > self._patience
