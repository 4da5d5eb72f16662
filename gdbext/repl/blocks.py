"""GDB's commands of several lines (``define`` … ``end``): where they begin and whether they are complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_OPENS: Final = re.compile(
    r"(define|define-prefix|document|commands|while-stepping|stepping|ws|actions|while|if)\b"
    r"|(python|pyt?|guile|gu|compile(\s+(code|c))?|expression)\s*$"
)
"""Commands that read on until ``end``; python and its like do where nothing follows."""
_PYTHON: Final = re.compile(r"(python|pyt?|guile|gu|compile|expression|document)\b")


def depth(text: str) -> int:
    """How many blocks are open at the end of `text`: each takes one more ``end``."""
    literal = False
    opened = 0
    for line in map(str.strip, text.splitlines()):
        if line == "end":
            opened = max(0, opened - 1)
            literal = literal and opened > 0
        elif not literal and _OPENS.match(line):
            opened += 1
            literal = bool(_PYTHON.match(line))
    return opened


def split(text: str) -> Iterator[str]:
    """The commands in `text`: a line each, or a block with all its lines."""
    held: list[str] = []
    for line in text.splitlines():
        held.append(line)
        if depth("\n".join(held)) == 0:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)
