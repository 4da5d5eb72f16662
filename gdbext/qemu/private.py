"""A directory for sockets and rings that only its owner can enter and that goes when its process goes, however."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from gdbext.errors import EnvironmentUnusable

_LONGEST = 60
"""Bytes a temporary directory's name may have: a UNIX socket address holds 107, and names are added to it."""

_MEMORY: Final = "/dev/shm"
_ENOUGH: Final = 256 << 20
"""Bytes that must be free there: containers often have 64 MiB."""

_WATCHDOG = 'read -r _; rm -rf -- "$1"'
"""Its standard input is a pipe of which we hold the only writing end: it ends when we do, even by SIGKILL."""


def _parent() -> str:
    if os.access(_MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(_MEMORY).free >= _ENOUGH:
        return _MEMORY
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _LONGEST else "/tmp"


def runtime_directory() -> Path:
    """A directory of the user's, for rings and sockets that outlive a command; raises EnvironmentUnusable.

    ``$XDG_RUNTIME_DIR/ctxwatch``, failing that one in memory. It is refused where it is somebody else's.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(runtime) / "ctxwatch" if runtime else Path(_MEMORY) / f"ctxwatch-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise EnvironmentUnusable(f"cannot make {path}", error.strerror or "", "set XDG_RUNTIME_DIR") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise EnvironmentUnusable(
            f"{path} is not a private directory of yours", todo="remove it, or set XDG_RUNTIME_DIR"
        )
    return path


class PrivateDirectory:
    """A temporary directory with mode 0700, removed by :meth:`close` or when this process dies.

    It lies in memory where it can: a ring on a disk would be written back for ever. Raises EnvironmentUnusable.
    """

    def __init__(self) -> None:
        try:
            self.path = Path(tempfile.mkdtemp(prefix="ctxwatch-", dir=_parent()))
        except OSError as error:
            raise EnvironmentUnusable("cannot make a private directory", str(error), "set TMPDIR") from error
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
