"""docs/tutorial-repl.md shows what the REPL shows."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.gdb import transcript

PROMPT = "(ctx) "
REPL = [sys.executable, "-c", "import sys; from gdbext.cli.main import main; sys.exit(main())", "repl"]


@pytest.mark.guest
@pytest.mark.gdb
def test_the_tutorial_is_what_is_shown() -> None:
    (block,) = transcript.blocks("tutorial-repl.md", PROMPT)
    typed = "\n".join(transcript.typed(block, PROMPT))
    done = subprocess.run([*REPL, "nrk-rflags"], input=typed, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not transcript.missing(block[1:], PROMPT, done.stdout), done.stdout
