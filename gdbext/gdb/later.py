"""What is to be done once the command at hand has ended, where no prompt or further command does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import gdb

_COMMAND_LINE: Final = Path("/proc/self/cmdline")


def post(action: Callable[[], object]) -> None:
    """Have `action` called by GDB's event loop, if GDB will come there.

    It crashes where a script ends it with an event posted, for it frees it when its Python is gone. So nothing is
    posted in batch mode (``-batch``), nor where it asks nothing (``set confirm off``), as scripts have it.
    """
    if gdb.parameter("confirm") and not _in_batch():
        gdb.post_event(action)


def _in_batch() -> bool:
    """GDB tells nobody, but what it was started with does."""
    try:
        words = _COMMAND_LINE.read_bytes().split(b"\0")
    except OSError:
        return False
    options = words[: words.index(b"--args")] if b"--args" in words else words
    return any(word.lstrip(b"-").startswith(b"batch") for word in options if word.startswith(b"-"))
