"""What is to be done once the command at hand has ended, where no prompt or further command does it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import gdb

_COMMAND_LINE: Final = Path("/proc/self/cmdline")


def post(action: Callable[[], object]) -> None:
    """Have `action` called by GDB's event loop if a front end uses it, which gets no prompt.

    GDB crashes where a script ends it with an event posted, for it frees it when its Python is gone. So nothing is
    posted for others, nor where it asks nothing (``set confirm off``), as scripts have it.
    """
    if gdb.parameter("confirm") and _has_front_end():
        gdb.post_event(action)


@cache
def _has_front_end() -> bool:
    """GDB tells nobody, but what it was started with does."""
    try:
        words = _COMMAND_LINE.read_bytes().split(b"\0")
    except OSError:
        return False
    options = words[1 : words.index(b"--args")] if b"--args" in words else words[1:]
    named = (word.lstrip(b"-") for word in options if word.startswith(b"-"))
    return any(name == b"i" or name.startswith((b"i=", b"interpreter")) for name in named)
