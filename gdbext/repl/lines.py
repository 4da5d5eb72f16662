"""The lines of a script on standard input, as they come."""

from __future__ import annotations

import os
import select
from typing import Final

_MOST: Final = 1 << 16


class Lines:
    """Reads the descriptor `fd` line by line; who waits for a line, in a thread, is let go by :meth:`leave`.

    Bytes that are no UTF-8 are kept as surrogates, which GDB is given back as the bytes they were.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._held = b""
        self._ended = False
        self._left, self._leaving = os.pipe()  # open to the end: the thread may still look at it

    def next(self) -> str:
        """The next line with its newline, which the last one may lack; "" at the end, or once it is left."""
        while b"\n" not in self._held and not self._ended:
            if self._left in select.select([self._fd, self._left], [], [])[0]:
                return ""
            data = os.read(self._fd, _MOST)
            self._held += data
            self._ended = not data
        line, newline, self._held = self._held.partition(b"\n")
        return (line + newline).decode("utf-8", "surrogateescape")

    def leave(self) -> None:
        """Nobody wants lines any more."""
        os.write(self._leaving, b"\n")
