"""Stores into live frames of a real guest, seen without being asked for."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
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


def test_all_stores_are_looked_at_from_the_beginning_where_that_is_wanted(
    watch: Callable[..., Watched], guest: Callable[[str], Path]
) -> None:
    """The first time of all is seen, and at exits that are not what was interrupted, what lies below their frame."""
    watched = watch("-kernel", str(guest("frame-overwritten")), watch=True, stores=True)
    watched.machine.cont()
    watched.run(watched.done, 90)
    rows = watched.rows
    stores = rows[rows["kind"] == Kind.STORE]
    at_once = stores[stores["match"] == 0]
    rsp = at_once[at_once["addr"] - at_once["frame"] == 24]
    changed = rows[(rows["kind"] == Kind.EXIT) & np.isin(rows["rsp"], rsp["value"])]
    assert len(changed)
    assert rsp["seq"][0] < changed["seq"][0]
    late = stores[stores["match"] != 0]
    assert len(late)
    assert (late["match"] < late["seq"]).all()
    assert ((late["addr"] < late["frame"]) & (late["addr"] + late["size"] > late["frame"] - 24 * 8)).all()
