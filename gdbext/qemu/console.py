"""What a guest or QEMU prints, as lines, read without waiting."""

from __future__ import annotations

import codecs
from typing import Any, Final

LONGEST_LINE: Final = 2000
"""Characters after which a line is broken: a guest that never ends its line must not fill our memory."""


class Console:
    """Lines out of a pwntools tube.

    tube: anything with ``recv(numb, timeout)``. Bytes that are no UTF-8 become U+FFFD; control characters stay as
    they are, escaping them is for who displays them.
    """

    def __init__(self, tube: Any) -> None:
        self._tube = tube
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._partial = ""
        self.closed = False

    def lines(self) -> list[str]:
        """The lines completed since the last call, without their ends. At the end of the stream, the rest too."""
        return self._split(self._decoder.decode(self._receive(), final=self.closed))

    @property
    def partial(self) -> str:
        """What has come of a line not yet ended: a prompt, for example."""
        return self._partial

    def _receive(self) -> bytes:
        if self.closed:
            return b""
        try:
            return bytes(self._tube.recv(1 << 16, timeout=0) or b"")
        except (EOFError, OSError):
            self.closed = True
            return b""

    def _split(self, text: str) -> list[str]:
        *lines, rest = (self._partial + text).replace("\r\n", "\n").split("\n")
        while len(rest) > LONGEST_LINE:
            lines.append(rest[:LONGEST_LINE])
            rest = rest[LONGEST_LINE:]
        if self.closed and rest:
            lines.append(rest)
            rest = ""
        self._partial = rest
        return [line.rstrip("\r") for line in lines]
