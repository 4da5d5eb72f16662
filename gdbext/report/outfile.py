"""Where a document is written: a file that keeps what it holds until the document is whole."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gdbext.errors import UsageError


@contextlib.contextmanager
def document(name: str, *apart_from: Path, called: str = "recording") -> Iterator[IO[str]]:
    """The file `name` opened for a document, or standard output for ``-``; raises UsageError.

    To be opened before the work begins, so that a wrong name is told at once. A file keeps what it holds until the
    document is whole. apart_from: files that are read, which it must not be; `called`: what they are to a person.
    """
    path = Path(name)
    with contextlib.ExitStack() as stack:
        if name == "-":
            stream: IO[str] = sys.stdout
        elif os.path.exists(path) and not os.path.isfile(path):  # a pipe, or /dev/stdout
            with writing(path):
                stream = stack.enter_context(path.open("w", encoding="utf-8"))
        else:
            partial = stack.enter_context(beside(path, *apart_from, called=called))
            stream = stack.enter_context(partial.open("w", encoding="utf-8"))
        yield stream


@contextlib.contextmanager
def beside(path: Path, *apart_from: Path, called: str = "recording") -> Iterator[Path]:
    """A file beside `path` that gets its name when the block has ended well, and is gone otherwise; raises UsageError
    where there can be none. apart_from, called: as for a document."""
    target = Path(os.path.realpath(path))  # a link stays one
    partial = target.with_name(target.name + ".partial")
    for name in (path, partial):
        keep_apart(name, *apart_from, called=called)
    try:
        with writing(path):
            partial.touch()
        yield partial
        with writing(path):
            partial.replace(target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def keep_apart(path: Path, *others: Path, called: str) -> None:
    """Raises UsageError where to write `path` would be to write over one of `others`, whatever name leads there.
    called: what they are to a person."""
    for other in others:
        if os.path.realpath(path) == os.path.realpath(other) or _same(path, other):
            raise UsageError(f"cannot write {path}", f"it is the {called} itself", "choose another name")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """The block does nothing but write `path`: that it cannot is told by a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path}", error.strerror or str(error)) from error


def _same(one: Path, other: Path) -> bool:
    """Two names of one file, by a hard link for instance."""
    return os.path.exists(one) and os.path.exists(other) and one.samefile(other)
