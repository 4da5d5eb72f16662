"""Run ``ctxwatch run`` as a person does, and keep what it said when a test does not like it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

EVIDENCE: Final = Path(tempfile.gettempdir()) / "ctxwatch-evidence"
"""Where a failed test leaves serial log and document."""

_CTXWATCH: Final = [sys.executable, "-c", "import sys; from gdbext.cli.main import main; sys.exit(main())"]


@dataclass(frozen=True)
class Watched:
    """One run: its words, exit status, JSON document, all that it printed (the guest's serial lines among it)."""

    words: list[str]
    status: int
    document: dict[str, Any]
    said: str

    @property
    def codes(self) -> list[str]:
        """Codes of the findings in order of events."""
        return [finding["code"] for finding in self.document.get("findings", [])]

    @property
    def evidence(self) -> str:
        """Put everything where it stays, and say where and how to run it again."""
        directory = EVIDENCE / "-".join(word.strip("-").replace("/", "_") for word in self.words)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        (directory / "output.txt").write_text(self.said)
        (directory / "report.json").write_text(json.dumps(self.document, indent=2))
        found = [
            (f["code"], f["field"], f["count"], f["interrupted"]["symbol"]) for f in self.document.get("findings", [])
        ]
        return (
            f"status {self.status}, findings {found}, events {self.document.get('events')}\n"
            f"  kept in {directory}\n  again: .venv/bin/ctxwatch run {shlex.join(self.words)}\n"
        )


def watch(*words: str, seconds: float = 280.0) -> Watched:
    """``ctxwatch run`` with `words`; its document comes from --json."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        done = subprocess.run(
            [*_CTXWATCH, "run", *words, "--json", str(report)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
        text = report.read_text() if report.exists() else ""
    assert "Traceback" not in done.stderr, done.stderr
    return Watched(list(words), done.returncode, json.loads(text) if text else {}, done.stdout + done.stderr)
