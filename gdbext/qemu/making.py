"""Guests that make builds: the call, why it failed, and putting what it made in its place."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from gdbext.errors import EnvironmentUnusable
from gdbext.qemu import child


def compiler() -> str:
    """The C compiler as make is to call it."""
    return os.environ.get("CC", "gcc")


def fingerprint(facts: object, root: Path, sources: Iterable[Path]) -> str:
    """Names what is made of `sources`, files below `root`, by this compiler; `facts`: what else it depends on."""
    digest = hashlib.sha256(repr((facts, compiler())).encode())
    found = shutil.which(compiler())
    if found is not None:
        status = os.stat(found)
        digest.update(repr((found, status.st_size, status.st_mtime_ns)).encode())
    for source in sources:
        digest.update(str(source.relative_to(root)).encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def make(sources: Path, what: str, **variables: str) -> None:
    """Run make in `sources`; raises EnvironmentUnusable, in which `what` is what cannot be built."""
    words = [f"{name}={value}" for name, value in variables.items()]
    try:
        done = child.run("make", "-s", "-C", str(sources), *words, f"CC={compiler()}")
    except OSError as error:
        raise EnvironmentUnusable("no make here", error.strerror or "", "run scripts/bootstrap") from error
    if done.returncode:
        raise EnvironmentUnusable(
            f"{what} cannot be built", first_trouble(done.stderr), "`ctxwatch doctor` shows what is missing"
        )


def first_trouble(said: str) -> str:
    """The line of make's standard error that tells why it failed: a program is missing, or the first error."""
    lines = [line for line in said.splitlines() if line.strip()]
    for signs in (("not found", "No such file"), ("rror",), ("",)):
        found = next((line for line in lines if any(sign in line for sign in signs)), "")
        if found:
            return found
    return ""


def install(ready: Path, directory: Path) -> None:
    """Put the complete directory `ready` in its place at once; another process may have been faster with the same."""
    try:
        ready.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise
