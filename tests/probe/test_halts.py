"""Halting real guests: a vCPU that a verdict stops stands on the first instruction of the wrong context."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from gdbext.events.row import Flag, Kind

from .conftest import Watched, built

pytestmark = pytest.mark.guest

Watch = Callable[..., Watched]
Kernel = Callable[[str], Path]

MOST_EVENTS: Final = 12000
"""Half of what nrk-rflags does before it ends. A moment on the clock would do only where nothing else runs."""


def halt_once(watch: Watch, kernel: Path, *words: str, behind: int = 0, deliberate: float = 0.0) -> None:
    """Behind so many events, halt at the first exit that has a live entry and differs from it; a vCPU then stands
    on the first instruction of that context, with its registers. `deliberate`: seconds a verdict takes."""
    watched = watch("-kernel", str(kernel), *words, rows=1024)  # a reader that is late holds the guest up
    watched.machine.cont()
    events, ended = 0, False
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not ended:
        rows = watched.source.read(0.02)
        assert rows is not None, "QEMU ended"
        ended = any("guest: done" in line for line in watched.machine.serial())  # read: a full line makes it wait
        events += len(rows)
        if events > behind:
            watched.source.set_halt(True)
        for row in rows[(rows["flags"] & Flag.WAITING) != 0]:
            time.sleep(deliberate)
            bad = row["kind"] == Kind.EXIT and row["match"] != 0
            watched.source.release(int(row["cpu"]), halt=bool(bad))
            if bad:
                where = [state(watched.machine.qmp, cpu) for cpu in range(len(watched.source._ring.control))]
                assert tuple(int(row[name]) for name in STATE.values()) in where
                watched.source.close()
                watched.machine.close()
                return
    pytest.fail(f"no halt behind {behind} events, {events} were seen" + (", the guest has ended" if ended else ""))


STATE: Final = {"RIP": "rip", "RSP": "rsp", "RBX": "rbx", "RBP": "rbp", "R12": "r12", "R15": "r15"}
"""What tells one context from another, as QEMU's monitor and a row call it."""


def state(qmp: Any, cpu: int) -> tuple[int, ...]:
    text = qmp.execute("human-monitor-command", {"command-line": "info registers", "cpu-index": cpu})
    found = {name: re.search(rf"\b{name} *=([0-9a-f]+)", text) for name in STATE}
    # A vCPU that is not in 64-bit mode yet has no RIP: it is none of those that could have halted.
    return tuple(int(value[1], 16) if value is not None else -1 for value in found.values())


def registers(qmp: Any, cpu: int) -> tuple[int, ...]:
    return state(qmp, cpu)[:2]


@pytest.mark.parametrize("smp", [1, 4])
def test_a_halt_is_exact(watch: Watch, guest: Kernel, smp: int) -> None:
    kernel = guest("nrk-rflags")
    for deliberate in (0.0, 0.0, 0.005, 0.02):
        halt_once(watch, kernel, "-smp", str(smp), behind=random.randrange(MOST_EVENTS), deliberate=deliberate)


@pytest.mark.slow
@pytest.mark.parametrize("smp", [1, 4])
def test_a_hundred_halts_are_exact(watch: Watch, guest: Kernel, smp: int) -> None:
    kernel = guest("nrk-rflags")
    for turn in range(100):
        behind = random.randrange(MOST_EVENTS)
        halt_once(watch, kernel, "-smp", str(smp), behind=behind, deliberate=0.003 * (turn % 4))


def test_a_halt_that_meets_a_pending_interrupt_is_tried_again(watch: Watch, tmp_path: Path) -> None:
    """A timer at 9 kHz is due whenever a verdict takes a while; QEMU may deliver it before it stops."""
    for _ in range(4):
        watched = watch(
            "-kernel", str(built("handlers", tmp_path, 64)), "-device", "isa-debug-exit,iobase=0xf4", halt=True
        )
        watched.machine.cont()
        halted = None
        deadline = time.monotonic() + 20
        while halted is None and time.monotonic() < deadline:
            rows = watched.source.read(0.1)
            assert rows is not None
            for row in rows[(rows["flags"] & Flag.WAITING) != 0]:
                bad = bool(row["match"] != 0)  # the timer's handler counts in ESI, which nobody gives back
                time.sleep(0.005 if bad else 0)
                watched.source.release(0, halt=bad)
                if bad:
                    halted = int(row["rip"]), int(row["rsp"])
                    break
        assert halted == registers(watched.machine.qmp, 0)
        watched.source.close()
        watched.machine.close()
