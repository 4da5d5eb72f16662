"""The protocol between the collector inside GDB and the source that reads it: rows one way, requests the other.

Over a UNIX stream socket that the reader opens. The collector sends a kind byte before each message: :data:`ROWS`, then
the bytes of one row; or :data:`BYTES`, a 4-byte length (:data:`UNMAPPED`: none) and as many bytes of guest memory. The
reader answers each row that carries Flag.WAITING with :data:`CONTINUE` or :data:`HALT`, and may ask for memory at any
time: :data:`MEMORY`, then address and length as 8-byte numbers. All numbers are little-endian. Requests are served at
stops, for GDB reads no memory of a running target.
"""

from __future__ import annotations

from typing import Final

ROWS: Final = b"r"
BYTES: Final = b"b"
UNMAPPED: Final = 0xFFFF_FFFF

CONTINUE: Final = b"c"
HALT: Final = b"h"
MEMORY: Final = b"m"
REQUEST_SIZE: Final = 17
"""Bytes of a memory request, its command byte included."""
MAX_READ: Final = 1 << 20
"""Bytes one request may ask for."""


def request(address: int, length: int) -> bytes:
    """A request for `length` bytes of guest virtual memory at `address`."""
    return MEMORY + address.to_bytes(8, "little") + length.to_bytes(8, "little")


def parse_request(raw: bytes) -> tuple[int, int]:
    """(address, length) of a request of REQUEST_SIZE bytes."""
    return int.from_bytes(raw[1:9], "little"), int.from_bytes(raw[9:17], "little")


def answer(data: bytes | None) -> bytes:
    """The message that carries `data`; None where the memory is unmapped."""
    if data is None:
        return BYTES + UNMAPPED.to_bytes(4, "little")
    return BYTES + len(data).to_bytes(4, "little") + data
