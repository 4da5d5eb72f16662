"""A command's standard streams, and a reader of them who leaves."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable


def reader_left() -> int:
    """The reader of standard output is gone: what is still buffered does not raise a second time at exit. Returns the
    exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def told(main: Callable[[], int]) -> int:
    """Do `main` and return its exit status, or that of a reader who left (``| head``)."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        return reader_left()
    return status


def settle() -> None:
    """Give every standard stream somewhere to go: a closed one leads nowhere, for the next file opened would take its
    place, and what a terminal's encoding lacks is shown as its code."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)
            if nowhere != number:
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # else somebody has put something of his own there
            stream.reconfigure(errors="backslashreplace")
