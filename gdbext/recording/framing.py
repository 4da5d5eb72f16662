"""Where the messages of an Arrow IPC stream begin and end (Arrow columnar format, "Encapsulated message format").

A message is FFFFFFFFh, the metadata's length in 4 bytes, the metadata (a flatbuffer, padded to 8 bytes) and a body
whose length the metadata holds. Knowing the boundaries lets us check what lies between them before anything decodes
it, and skip bodies unread.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from gdbext.errors import RecordingError

_CONTINUATION: Final = b"\xff\xff\xff\xff"
_PREFIX: Final = 8
_MAX_METADATA: Final = 1 << 30
_BODY_LENGTH_SLOT: Final = 4 + 2 * 3
"""``bodyLength`` is field 3 of the flatbuffer table ``Message``; a vtable begins with two sizes of 2 bytes."""


class Frame(NamedTuple):
    """One message's place in the file, in bytes."""

    start: int
    metadata: int
    body: int

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.start + _PREFIX + self.metadata + self.body


def frame_at(fd: int, start: int, size: int) -> Frame | None:
    """The message that begins at byte `start` of a file of `size` bytes; None at the stream's end mark.

    Raises RecordingError where none begins or it does not end within the file.
    """
    prefix = os.pread(fd, _PREFIX, start)
    if start == 0 and not prefix.startswith(_CONTINUATION[: len(prefix)]):
        raise RecordingError("it is no recording: no Arrow stream begins there")
    if len(prefix) < _PREFIX:
        raise RecordingError(f"it is cut off at byte {start + len(prefix)}")
    length = int.from_bytes(prefix[4:], "little")
    if prefix[:4] != _CONTINUATION or length > _MAX_METADATA:
        raise RecordingError(f"it is damaged: no message begins at byte {start}")
    if length == 0:
        return None
    metadata = os.pread(fd, min(length, size), start + _PREFIX)
    frame = Frame(start, length, _body_length(metadata) if len(metadata) == length else 0)
    if frame.body < 0:
        raise RecordingError(f"it is damaged: the message at byte {start} makes no sense")
    if len(metadata) < length or frame.end > size:
        raise RecordingError(f"it is cut off at byte {size}, in the middle of a batch")
    return frame


def _body_length(metadata: bytes) -> int:
    """The body's length in bytes as the flatbuffer says; -1 where that cannot be."""
    table = _number(metadata, 0, 4)
    vtable = table - _number(metadata, table, 4, signed=True)
    if _number(metadata, vtable, 2) <= _BODY_LENGTH_SLOT:
        return 0
    slot = _number(metadata, vtable + _BODY_LENGTH_SLOT, 2)
    return _number(metadata, table + slot, 8, signed=True) if slot else 0


def _number(data: bytes, at: int, size: int, signed: bool = False) -> int:
    if not 0 <= at <= len(data) - size:
        return -1
    return int.from_bytes(data[at : at + size], "little", signed=signed)
