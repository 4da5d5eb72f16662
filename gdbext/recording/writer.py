"""Writing a recording beside a running guest, in a thread of its own.

What has been written is always readable: a batch and its mark go to the file in one piece, at most half a second after
the first of their events. Until it is closed the file is called ``FILE.incomplete``.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import pyarrow as pa

from gdbext.errors import UsageError
from gdbext.events.row import Batch, empty
from gdbext.recording import schema as columns
from gdbext.recording.header import Header
from gdbext.recording.mark import Mark, MemoryRead
from gdbext.recording.memory import RememberingGuest
from gdbext.rules.guest import GuestView

ROWS: Final = 65_536
"""Events in a batch at most."""
DELAY: Final = 0.8
"""Seconds an event waits to be written at most, if the disk keeps up."""
AHEAD: Final = 8 * ROWS
"""Events waiting to be written beyond which the guest's reader waits too."""
NAMED: Final = 1 << 17
"""Addresses of events whose names are kept at most."""
_END_BYTES: Final = 8
"""The end mark of a stream."""
_LEVEL: Final = 5
"""Of zstd: files are a quarter smaller and read back by a quarter faster than at 1 to 4, for twice the time to write
them, which is the recorder's own thread's; 6 takes half as long again and gains a twentieth."""

Note = Callable[[str], None]


class Recorder:
    """A recording in the making.

    guest: wraps the engine's view of the guest; the engine must be given :attr:`guest` for replay to find the same.
    note: told in one line if recording has to stop early.

    Raises UsageError where the file cannot be made.
    """

    def __init__(self, path: Path, header: Header, guest: GuestView, note: Note) -> None:
        if not path.name:
            raise UsageError(f"cannot record to {path}", "it is not a regular file")
        self.path = path
        self.partial = path.with_name(path.name + ".incomplete")
        self.guest = RememberingGuest(guest)
        self._note = note
        self._names = _Names(guest)
        self._changed = threading.Condition()
        self._waiting: list[Batch] = []
        self._learnt: tuple[dict[MemoryRead, bytes | None], dict[int, str | None]] = {}, {}
        self._rows = 0
        self._since = 0.0
        self._ending = False
        self._header = header
        self._simd: bool | None = None
        self._file = _File(_create(path, self.partial))
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def write(self, batch: Batch) -> None:
        """Record `batch`, which has just been judged; waits while too much is waiting already."""
        memory, names = self.guest.take()
        with self._changed:
            self._changed.wait_for(lambda: self._rows < AHEAD or self._file.failed)
            self._learnt[0].update(memory)
            self._learnt[1].update(names)
            if self._file.failed or not len(batch):
                return
            if self._simd is None:
                self._begin("simd" in (batch.dtype.names or ()))
            if not self._rows:
                self._since = time.monotonic()
            self._waiting.append(batch.copy())
            self._rows += len(batch)
            if self._rows >= ROWS or self._rows == len(batch):
                self._changed.notify_all()

    def close(self, end: dict[str, Any]) -> bool:
        """Finish the recording with the run's report `end` and give it its name; False if it stays incomplete."""
        self._stop()
        if self._simd is None:
            self._begin(simd=False)
        memory, names = self.guest.take()
        last = Mark(memory=self._learnt[0] | memory, names=self._learnt[1] | names, end=end)
        self._put(lambda: self._file.finish(last))
        if not self._file.failed:
            self._put(lambda: self.partial.replace(self.path))
        self._file.close()
        return not self._file.failed

    def abandon(self) -> None:
        """Write what is waiting and leave the file under its incomplete name; idempotent, also after close."""
        self._stop()
        self._file.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.abandon()

    def _begin(self, simd: bool) -> None:
        """The first event tells whether there is SIMD state."""
        self._simd = simd
        self._put(lambda: self._file.begin(columns.schema(simd, self._header.metadata())))

    def _stop(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._rows > 0 or self._ending)
                left = self._since + DELAY - time.monotonic()
                self._changed.wait_for(lambda: self._rows >= ROWS or self._ending, timeout=max(left, 0))
                if not self._rows:
                    return
                waiting, self._waiting, self._rows = self._waiting, [], 0
                learnt, self._learnt = self._learnt, ({}, {})
                self._changed.notify_all()
            self._put(lambda waiting=waiting, learnt=learnt: self._write(waiting, *learnt))  # type: ignore[misc]

    def _write(
        self, waiting: list[Batch], memory: dict[MemoryRead, bytes | None], names: dict[int, str | None]
    ) -> None:
        rows = _joined([self._fit(batch) for batch in waiting])
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            seq = part["seq"]
            mark = Mark(len(part), int(seq.min()), int(seq.max()), memory, self._names.of(part) | names)
            self._file.append(part, mark)
            memory, names = {}, {}

    def _fit(self, batch: Batch) -> Batch:
        """Rows without SIMD state among those with it, as the row of a machine that died."""
        wanted = empty(0, bool(self._simd)).dtype
        if batch.dtype == wanted:
            return batch
        fitted = np.zeros(len(batch), wanted)
        for name in set(wanted.names or ()) & set(batch.dtype.names or ()):
            fitted[name] = batch[name]
        return fitted

    def _put(self, action: Callable[[], object]) -> None:
        """Do it unless writing has failed before; the first failure is told, and the guest goes on."""
        if self._file.failed:
            return
        try:
            action()
        except OSError as error:
            self._file.failed = True
            with self._changed:
                self._changed.notify_all()
            self._note(
                f"recording stopped: {error.strerror or error}; {self.partial} holds what was written so far and can "
                "be replayed"
            )


def _joined(batches: list[Batch]) -> Batch:
    """One batch of all; as raw bytes, for NumPy copies structures field by field."""
    dtype = batches[0].dtype
    joined: Batch = np.concatenate([batch.view(f"V{dtype.itemsize}") for batch in batches]).view(dtype)
    return joined


class _Names:
    """The names of the places that events were seen at, each once."""

    def __init__(self, guest: GuestView) -> None:
        self._guest = guest
        self._asked: set[int] = set()

    def of(self, rows: Batch) -> dict[int, str | None]:
        """The names of guest virtual addresses in `rows` that were not asked for before."""
        places = np.unique(np.concatenate((rows["pc"], rows["rip"]))).tolist()
        names: dict[int, str | None] = {}
        for place in places:
            if place not in self._asked and len(self._asked) < NAMED:
                self._asked.add(place)
                name = self._guest.symbol(place)
                if name is not None:
                    names[place] = name
        return names


class _File:
    """The stream: units of a batch and its mark, each written whole or not at all."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._good = 0
        self._sum = 0
        self.failed = False
        self._pieces = _Pieces()

    def begin(self, schema: pa.Schema) -> None:
        """Write the schema; raises OSError."""
        self._schema = schema
        self._sum = zlib.crc32(_head(schema))
        options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", _LEVEL), use_threads=False)
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._pieces, mode="w"), schema, options=options)
        self._nothing = columns.to_arrow(empty(0, columns.has_simd(schema)), schema)
        self._append_mark(Mark())

    def append(self, rows: Batch, mark: Mark) -> None:
        """Write a batch and its mark; raises OSError, having taken back what was written of them."""
        self._writer.write_batch(columns.to_arrow(rows, self._schema))
        self._append_mark(mark)

    def finish(self, mark: Mark) -> None:
        """Write the last mark and the stream's end."""
        self._append_mark(mark)
        self._writer.close()
        self._flush(self._pieces.take())
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append_mark(self, mark: Mark) -> None:
        data = self._pieces.take()
        metadata = mark.metadata(zlib.crc32(data, self._sum))
        self._writer.write_batch(self._nothing, custom_metadata=metadata)
        self._flush(data + self._pieces.take())
        self._sum = 0

    def _flush(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, self._good)
            raise
        self._good += len(data)


def _head(schema: pa.Schema) -> bytes:
    """The schema's message: Arrow writes it together with the first batch, too late for that batch's checksum."""
    stream = pa.BufferOutputStream()
    pa.ipc.new_stream(stream, schema).close()
    data: bytes = stream.getvalue().to_pybytes()
    return data[:-_END_BYTES]


class _Pieces:
    """The file object that Arrow writes to: it keeps the pieces until they are taken."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Keep a copy of `data`; its length in bytes."""
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The end of the stream is not the end of the file."""

    def take(self) -> bytes:
        """What was written since the last call."""
        taken, self._pieces = b"".join(self._pieces), []
        return taken


def _create(path: Path, partial: Path) -> int:
    """Open `partial` for writing, its owner's alone; raises UsageError."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"cannot record to {path}", "it is not a regular file")
    try:
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"cannot record to {path}", error.strerror or str(error)) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_called(fd, partial):
            raise BlockingIOError  # whoever wrote it has just given it its name: it is whole
        os.ftruncate(fd, 0)
    except OSError as error:
        os.close(fd)
        why = "another ctxwatch is recording to it" if isinstance(error, BlockingIOError) else error.strerror
        raise UsageError(f"cannot record to {path}", why or str(error)) from error
    return fd


def _is_called(fd: int, path: Path) -> bool:
    """Whether the open file still has that name."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False
