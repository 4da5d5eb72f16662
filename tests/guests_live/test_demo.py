"""``ctxwatch demo`` shows what the README says it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.gdb import transcript

_CTXWATCH = [sys.executable, "-c", "import sys; from gdbext.cli.main import main; sys.exit(main())"]
_WRAPPED = re.compile(r"\n {15}(?=\S)")
_DIFFERS = {
    r"\+[\d.]+ .?s ": "+TIME ",
    r"(user|kernel) code": "CODE",
    r"\b(\d+ entries|1 entry) before": "N before",
    r"\b(\d+ interrupts|one interrupt) ago": "N ago",
    r"its (system call|#[A-Z]{2} [a-z ]+|interrupt 0x40) at event": "its ENTRY at event",
}
"""From run to run, besides what other transcripts let differ: which interrupt comes first, and when."""

pytestmark = pytest.mark.guest


def test_the_demo_is_the_readmes_and_names_the_writer() -> None:
    done = subprocess.run(
        [*_CTXWATCH, "demo", "--via", "probe"],
        env={**os.environ, "COLUMNS": "400"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    shown = _steady(done.stdout + done.stderr)
    assert done.returncode == 0, shown
    page = _steady(_WRAPPED.sub(" ", transcript.README.read_text("utf-8")))
    _, _, block = page.partition("$ ctxwatch demo\n")
    lines = block.partition("```")[0].splitlines()
    assert len(lines) > 20
    if "  swapgs  " not in shown:  # a kernel thread was interrupted first
        lines = [line for line in lines if "  swapgs  " not in line]
    assert not transcript.missing(lines, "$", shown), shown
    assert "since then" in shown, "the README's picture has it, too"


def _steady(text: str) -> str:
    for pattern, word in _DIFFERS.items():
        text = re.sub(pattern, word, text)
    return text
