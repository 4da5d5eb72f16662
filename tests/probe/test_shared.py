"""What vCPUs share beside the ring, under threads that do nothing else (see shared_race.c)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize("what", ["targets", "frames", "watches", "rows"])
def test_neither_side_misses_what_the_other_does(compiled: Callable[..., Path], tmp_path: Path, what: str) -> None:
    words: list[str | Path] = [compiled("shared_race.c"), what, tmp_path / "ring"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
