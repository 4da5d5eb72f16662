"""Stores into live frames of a real guest, seen without being asked for."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gdbext.events.row import Kind

from .conftest import Watched

pytestmark = pytest.mark.guest


def test_stores_into_live_frames(watch: Callable[..., Watched], guest: Callable[[str], Path]) -> None:
    """Nobody asked for stores: they are looked at from the first exit on that pops a frame changed in place."""
    kernel = guest("frame-overwritten")
    watched = watch("-kernel", str(kernel), watch=True)
    watched.machine.cont()
    watched.run(watched.done)
    rows = watched.rows
    stores = rows[rows["kind"] == Kind.STORE]
    assert ((stores["addr"] + stores["size"] > stores["frame"]) & (stores["addr"] < stores["frame"] + 40)).all()
    assert len(stores) < len(rows) // 4  # a context may be left behind, and its stack be used again
    symbols = subprocess.run(["nm", str(kernel)], capture_output=True, text=True, check=True).stdout
    stamp = int(re.findall(r"^(\w+) \w stamp_stack", symbols, re.MULTILINE)[0], 16)
    stamps = stores[(stores["pc"] - stamp) < 32]
    assert len(stamps)
    assert (stamps["addr"] - stamps["frame"] == 24).all()  # RSP's word of it
    assert (stamps["value"] % 16 == 0).all()
