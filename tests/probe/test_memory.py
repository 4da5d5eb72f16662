"""Guest memory: by the vCPUs while they run, through QEMU's monitor otherwise; nothing left on disk."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gdbext.events.row import Flag, Kind

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


class Asked:
    """Counts what QEMU's monitor is asked for."""

    def __init__(self, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[str] = []
        execute = watched.machine.qmp.execute

        def counted(command: str, *words: Any, **options: Any) -> Any:
            self.commands.append(command)
            return execute(command, *words, **options)

        monkeypatch.setattr(watched.machine.qmp, "execute", counted)


def test_a_running_guest_gives_its_memory_itself(
    watch: Callable[..., Watched], guest: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch("-kernel", str(guest("clean-nrk")))
    watched.machine.cont()

    def handlers() -> list[int]:  # the firmware's left out, which the kernel does not map
        return [int(pc) for part in watched.parts for pc in part["pc"][part["kind"] == Kind.EXIT] if pc >> 63]

    watched.run(lambda: bool(handlers()))
    asked = Asked(watched, monkeypatch)
    handler = handlers()[-1]
    pages: list[bytes] = []
    while len(pages) < 100 and not watched.done():
        pages.append(watched.source.read_memory(handler & ~0xFFF, 4096))
        watched.run(lambda: True)  # a full ring would make the vCPU wait: there, too, it answers
    assert len(asked.commands) < len(pages) / 2, asked.commands  # on a busy machine it may be away for a while
    monkeypatch.undo()
    watched.machine.stop()
    assert set(pages) == {watched.source.read_memory(handler & ~0xFFF, 4096)}
    with pytest.raises(OSError, match="Invalid addr"):
        watched.source.read_memory(0x7FFF_0000_0000, 8)
    watched.machine.cont()
    with pytest.raises(OSError, match="Invalid addr"):
        watched.source.read_memory(0x7FFF_0000_0000, 8)
    page = watched.source.read_memory(handler & ~0xFFF, 4096)  # and the window is free again, or QEMU asked
    assert page == pages[0]


def test_a_vcpu_that_waits_gives_its_memory_itself(
    watch: Callable[..., Watched], guest: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch("-kernel", str(guest("clean-nrk")), halt=True)
    watched.machine.cont()
    watched.run(lambda: any((part["flags"] & Flag.WAITING).any() for part in watched.parts))
    asked = Asked(watched, monkeypatch)
    row = watched.rows[(watched.rows["flags"] & Flag.WAITING) != 0][-1]
    for _ in range(20):
        assert len(watched.source.read_memory(int(row["pc"]), 16)) == 16
    assert len(asked.commands) < 10, asked.commands


def test_a_slow_monitor_makes_no_vcpu_wait_for_a_stop(
    watch: Callable[..., Watched], guest: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stands in the probe is let go, for QEMU may be stopping; here it is not, and nobody waits for that."""
    watched = watch("-kernel", str(guest("clean-nrk")), halt=True)
    watched.machine.cont()
    watched.run(lambda: any((part["flags"] & Flag.WAITING).any() for part in watched.parts))
    execute = watched.machine.qmp.execute
    before = watched.source.published

    def slow(command: str, arguments: Any, meanwhile: Callable[[], None]) -> Any:
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            meanwhile()
        assert watched.source.published > before
        return execute(command, arguments, meanwhile=meanwhile)

    with monkeypatch.context() as patched:
        patched.setattr(watched.machine.qmp, "execute", slow)
        assert len(watched.source._memory.physical(0x1000, 16)) == 16
