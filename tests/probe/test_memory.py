"""Guest memory through QEMU's monitor: what is mapped, what is not, and nothing left on disk."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Watched

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("other_namespace", [False, True])
def test_guest_memory(
    watch: Callable[..., Watched], guest: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, other_namespace: bool
) -> None:
    kernel = guest("clean-nrk")
    symbols = subprocess.run(["nm", str(kernel)], capture_output=True, text=True, check=True).stdout
    ticks = int(re.findall(r"^(\w+) \w ticks$", symbols, re.MULTILINE)[0], 16)
    watched = watch("-kernel", str(kernel))
    watched.machine.cont()
    watched.run(lambda: watched.said("guest: start"))
    watched.machine.stop()
    if other_namespace:  # of processes: QEMU then does not find ours
        monkeypatch.setattr(os, "getpid", lambda: 1 << 30)
    first, again = watched.source.read_memory(ticks, 4), watched.source.read_memory(ticks, 4)
    assert first == again
    assert 0 < len(watched.source.read_memory(ticks & ~0xFFF, 4096)) == 4096
    with pytest.raises(OSError, match="Invalid addr"):
        watched.source.read_memory(0x7FFF_0000_0000, 8)
    assert not list(watched.source._ring.path.parent.glob("*.memory"))
