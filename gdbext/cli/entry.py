"""Where the command begins: imports nothing, so that a Ctrl-C while the rest is loaded ends it in good order, too."""

from __future__ import annotations

_INTERRUPTED = 130
"""128 + SIGINT."""


def run() -> int:
    """Run ``ctxwatch`` with the process's arguments and return the exit status."""
    try:
        from gdbext.cli.main import main

        return main()
    except KeyboardInterrupt:
        return _INTERRUPTED
