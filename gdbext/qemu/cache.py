"""The user's cache: what is built or fetched once and used again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from gdbext.errors import EnvironmentUnusable


def directory(kind: str) -> Path:
    """Where things of `kind` are kept, whether it is there or not."""
    return platformdirs.user_cache_path("ctxwatch") / kind


def made(kind: str) -> Path:
    """The directory of `kind`, to be written to; raises EnvironmentUnusable where it cannot be."""
    path = directory(kind)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentUnusable(f"cannot make {path}", error.strerror or "", "set XDG_CACHE_HOME") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise EnvironmentUnusable(f"cannot write to {path}", todo="set XDG_CACHE_HOME")
    return path
