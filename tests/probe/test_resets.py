"""Resets: those that a guest asks for, and those that are deaths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gdbext.events.row import Kind
from gdbext.rules.engine import Engine

from .conftest import Watched, built

pytestmark = pytest.mark.guest

ASKING = {"keyboard": (0x64, 0xFE), "chipset": (0xCF9, 0x06), "system": (0x92, 0x01)}


@pytest.mark.parametrize("how", [*ASKING, "triple fault"])
def test_only_what_nobody_asked_for_is_a_death(watch: Callable[..., Watched], tmp_path: Path, how: str) -> None:
    port, value = ASKING.get(how, (0, 0))
    flags = [f"-DPORT={port}", f"-DVALUE={value}"] if port else []
    watched = watch("-kernel", str(built("reset", tmp_path, 64, *flags)))
    watched.machine.qmp.execute("set-action", {"reboot": "reset"})
    watched.machine.cont()
    watched.run(lambda: sum(int((part["kind"] == Kind.ENTRY).sum()) for part in watched.parts) > 2)
    kinds = watched.rows["kind"]
    ends = kinds[(kinds == Kind.DIED) | (kinds == Kind.RESTORED)].tolist()
    assert ends[0] == (Kind.RESTORED if port else Kind.DIED)  # behind it, the firmware may ask for another
    assert (Kind.DIED in ends) == (not port)
    assert watched.source.resets_asked > 0 or not port
    engine = Engine()
    engine.feed(watched.rows)
    assert {finding.code for finding in engine.findings} == (set() if port else {"CW901"})
    assert not len(engine.pending()) or kinds[-1] == Kind.ENTRY
