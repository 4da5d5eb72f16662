"""A directory for sockets and rings that only its owner can enter and that goes when its process goes, however."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

_LONGEST = 60
"""Bytes a temporary directory's name may have: a UNIX socket address holds 107, and names are added to it."""

_WATCHDOG = 'read -r _; rm -rf -- "$1"'
"""Its standard input is a pipe of which we hold the only writing end: it ends when we do, even by SIGKILL."""


class PrivateDirectory:
    """A temporary directory with mode 0700, removed by :meth:`close` or when this process dies."""

    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        self.path = Path(tempfile.mkdtemp(prefix="ctxwatch-", dir=parent if len(parent) <= _LONGEST else "/tmp"))
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "sh", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for us, not for it
        )

    def close(self) -> None:
        """Remove the directory; idempotent."""
        assert self._watchdog.stdin is not None
        if not self._watchdog.stdin.closed:
            self._watchdog.stdin.close()
        self._watchdog.wait()
        shutil.rmtree(self.path, ignore_errors=True)
