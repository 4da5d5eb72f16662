"""The protocol between the collector inside GDB and the source that reads it: rows one way, requests the other.

Over a UNIX stream socket that the reader opens. The collector sends a kind byte before each message: :data:`ROWS`, then
the bytes of one row; or :data:`BYTES`, a 4-byte length (:data:`UNMAPPED`: none) and as many bytes of guest memory; or
:data:`FAILED`, a 4-byte length and as many bytes that say why no more rows come. The reader answers each row that
carries Flag.WAITING with :data:`CONTINUE` or :data:`HALT`, and may ask at any time for memory: :data:`MEMORY`, then
address and length as 8-byte numbers; or for the stores into some ranges, and no others any more: :data:`WATCH`, their
number as an 8-byte number, then the first byte of each and the one behind it likewise. That is answered as memory is,
with one byte, or with none where it cannot be. All numbers are little-endian. Requests are served at stops, for GDB
reads no memory of a running target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gdbext.errors import CtxwatchError

ROWS: Final = b"r"
BYTES: Final = b"b"
FAILED: Final = b"f"
UNMAPPED: Final = 0xFFFF_FFFF

CONTINUE: Final = b"c"
HALT: Final = b"h"
MEMORY: Final = b"m"
WATCH: Final = b"w"
_NUMBER: Final = 8
MAX_RANGES: Final = 256
"""Ranges that one request may name."""
MAX_READ: Final = 1 << 20
"""Bytes one request may ask for."""


def request(address: int, length: int) -> bytes:
    """A request for `length` bytes of guest virtual memory at `address`."""
    return MEMORY + _numbers(address, length)


def watch_request(ranges: Sequence[tuple[int, int]]) -> bytes:
    """A request for the stores into `ranges` (first byte, and the one behind the last), MAX_RANGES at most."""
    chosen = ranges[:MAX_RANGES]
    return WATCH + _numbers(len(chosen), *(place for span in chosen for place in span))


def request_size(raw: bytes) -> int:
    """Bytes of the request that `raw` begins with, as far as that can be told: more than `raw` has while it is cut."""
    if raw[:1] == MEMORY:
        return 1 + 2 * _NUMBER
    if raw[:1] == WATCH:
        head = 1 + _NUMBER
        return head if len(raw) < head else head + 2 * _NUMBER * min(_number(raw, 1), MAX_RANGES)
    return 1


def parse_request(raw: bytes) -> tuple[int, int]:
    """(address, length) of a whole memory request."""
    return _number(raw, 1), _number(raw, 1 + _NUMBER)


def parse_watch(raw: bytes) -> list[tuple[int, int]]:
    """The ranges of a whole request for stores."""
    places = [_number(raw, at) for at in range(1 + _NUMBER, len(raw), _NUMBER)]
    return list(zip(places[::2], places[1::2], strict=True))


def _numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(_NUMBER, "little") for value in values)


def _number(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + _NUMBER], "little")


def failure(error: CtxwatchError) -> bytes:
    """The message that carries `error`."""
    text = "\0".join((error.what, error.why, error.todo)).encode()
    return FAILED + len(text).to_bytes(4, "little") + text


def parse_failure(text: bytes) -> CtxwatchError:
    """The error in what follows the length of a FAILED message."""
    return CtxwatchError(*text.decode("utf-8", "replace").split("\0")[:3])


def answer(data: bytes | None) -> bytes:
    """The message that carries `data`; None where the memory is unmapped."""
    if data is None:
        return BYTES + UNMAPPED.to_bytes(4, "little")
    return BYTES + len(data).to_bytes(4, "little") + data
