"""What the probe saw of a Linux kernel against what QEMU logs and what the kernel itself counts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gdbext.arch import vectors
from gdbext.errors import EnvironmentUnusable
from gdbext.events.row import Kind
from gdbext.qemu import guests
from tests.probe.conftest import Watched, probe, watch

__all__ = ["probe", "watch"]

LOCAL_TIMER = 0xEC
MADE_BY_CODE = (vectors.DB, vectors.BP, vectors.OF, 0x80)
AFTER = 200
"""Ticks that may come between the kernel's own count and its end."""


def place(vector: int, cs: int, rip: int) -> tuple[int, int, int]:
    """What both tell alike: of traps made by an instruction QEMU logs its place, the CPU pushes what follows."""
    return vector, cs, 0 if vector in MADE_BY_CODE else rip


@pytest.mark.guest
@pytest.mark.slow
def test_entries_are_those_that_qemu_logs_and_the_kernel_counts(watch: Callable[..., Watched], tmp_path: Path) -> None:
    guest = dataclasses.replace(guests.find("linux-amd64"), workload="traps,restart,spin")
    try:
        kernel = guests.build(guest)
    except EnvironmentUnusable as error:
        pytest.skip(str(error))
    log = tmp_path / "log"
    watched = watch(*guest.command(kernel)[1:], "-d", "int", "-D", str(log))
    watched.machine.cont()
    watched.run(watched.done, 120)
    watched.machine.stop()
    watched.drain()
    rows, said = watched.rows, "\n".join(watched.serial)
    entries = rows[rows["kind"] == Kind.ENTRY]
    entries = entries[entries["vector"] < 0x100]
    seen = [place(*row) for row in zip(*(entries[name].tolist() for name in ("vector", "cs", "rip")), strict=True)]

    # One line for each delivery; those of the firmware and of the kernel's own start are in other segments.
    lines = re.findall(r"^ *\d+: v=(\w+) e=\w+ i=\d cpl=\d IP=(\w+):(\w+)", log.read_text(), re.MULTILINE)
    logged = [place(*(int(word, 16) for word in line)) for line in lines if int(line[1], 16) in (0x10, 0x23, 0x33)]
    assert len(logged) - len(seen) in (0, 1)  # the last one's handler may not have begun when the guest was stopped
    assert seen == logged[: len(seen)]
    assert watched.source.lost == 0

    timer = re.search(r"LOC: +(\d+)", said)
    assert timer is not None, said
    ticks = sum(vector == LOCAL_TIMER for vector, _, _ in seen)
    assert int(timer[1]) <= ticks <= int(timer[1]) + AFTER
