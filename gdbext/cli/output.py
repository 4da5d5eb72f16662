"""Where a command's machine output goes."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import IO

from gdbext.errors import UsageError


def document(name: str) -> contextlib.AbstractContextManager[IO[str]]:
    """The file `name` opened for a document, or standard output for ``-``; raises UsageError.

    To be opened before the work begins, so that a wrong name is told at once.
    """
    if name == "-":
        return contextlib.nullcontext(sys.stdout)
    try:
        return Path(name).open("w", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {name}", error.strerror or str(error)) from error
