"""Children that the kernel kills when we end, however we end."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def leash() -> Callable[[], None]:
    """What a child is to run before its program (``preexec_fn``), to be killed when the calling thread ends."""
    prctl = ctypes.CDLL(None).prctl  # looked up here: a child must not take locks
    parent = os.getpid()

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # which has ended meanwhile
            os._exit(1)

    return in_child
