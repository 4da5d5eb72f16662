"""Child processes that end with us, on pwntools' process tube."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gdbext.sources.leash import leash


def silence() -> None:
    """Keep pwntools from touching the terminal or logging to it; call before anything else of it is imported."""
    os.environ.setdefault("PWNLIB_NOTERM", "1")
    from pwnlib.context import context

    context.log_level = "critical"


def run(
    *command: str, timeout: float | None = None, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end with nothing to read, and return what it said, as text whatever the bytes.

    Raises OSError where it cannot be run, subprocess.TimeoutExpired after `timeout` seconds.
    """
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


def spawn(argv: Sequence[str]) -> Any:
    """Start `argv` as a pwntools ``process`` in a session of its own, standard error joined to standard output.

    The kernel kills it when the calling thread ends, so call this from a thread that lasts. Raises OSError.
    """
    silence()
    from pwnlib.tubes.process import PIPE, process

    tie = leash()
    core_limit = resource.getrlimit(resource.RLIMIT_CORE)

    def in_child() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, core_limit)  # pwntools asks for core files; nobody else did
        os.dup2(1, 2)  # pwntools would make a second pipe
        os.setsid()  # a Ctrl-C on our terminal is for us
        tie()

    return process(list(argv), stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL, preexec_fn=in_child)
