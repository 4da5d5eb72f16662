"""Tasks that the CPU switches: by code that asks for it (CW108, CW107), and by a task gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gdbext.arch.registers import GPR64
from gdbext.events.row import Batch, Flag, How, Kind, empty
from gdbext.rules.engine import Engine
from tests.rules.rows import batch, entry, exit_, stamp

TSS = 0x11C000


def task(**changes: Any) -> dict[str, Any]:
    """The kernel code of a task that gives way, as ia32 has it."""
    general = {name: 0x100 + at for at, name in enumerate(GPR64[:8])}
    selectors = {"cs": 8, "ss": 0x10, "ds": 0x10, "es": 0x10, "fs": 0xF, "gs": 0xF}
    return general | selectors | {"rip": 0x1001F4, "rflags": 0x46, "cr3": 0x117000, "addr": TSS} | changes


def switch(kind: int, ctx: dict[str, Any]) -> Batch:
    row = empty(1)
    row["kind"], row["how"], row["mode"] = kind, How.TASK, 32
    row["flags"] = Flag.LINEAR32 | (Flag.FLAGS_PARTIAL if kind == Kind.SWITCH_OUT else 0)
    for name, value in ctx.items():
        row[name] = value
    return row


def found(*rows: Batch, cut: int = 0) -> list[tuple[str, str | None]]:
    whole = stamp(batch(*rows))
    engine = Engine()
    for part in (whole[:cut], whole[cut:]):
        engine.feed(part)
    return [(finding.code, finding.field) for finding in engine.findings]


@pytest.mark.parametrize("cut", range(3))
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"rflags": 0x3}, []),  # what was read live lacks the arithmetic flags
        ({"rdi": 7}, [("CW108", "rdi")]),
        ({"rflags": 0x246}, [("CW108", "rflags")]),
        ({"es": 0x23, "fs": 0}, [("CW108", "es,fs")]),
        ({"cr3": 0x118000}, [("CW107", "cr3")]),
        ({"rip": 0x100200, "rdi": 7}, []),  # another task, in the TSS of one that has ended
        ({"rsp": 0x9000, "rdi": 7}, []),
        ({"rdi": 7, "rsi": 8, "rbx": 9}, []),
    ],
)
def test_what_a_far_jump_takes_up_is_what_gave_way(
    changes: dict[str, Any], expected: list[tuple[str, str]], cut: int
) -> None:
    rows = [switch(Kind.SWITCH_OUT, task()), switch(Kind.SWITCH_IN, task(**changes))]
    assert found(*rows, cut=cut) == expected


def test_tasks_are_told_apart_by_their_tss() -> None:
    other = task(rdi=5, addr=TSS + 0x68)
    rows = [switch(Kind.SWITCH_OUT, task()), switch(Kind.SWITCH_OUT, other), switch(Kind.SWITCH_IN, other)]
    assert found(*rows, switch(Kind.SWITCH_IN, task())) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"rcx": 0xC9}, [("CW101", "rcx")]),
        ({"rflags": 0x202}, [("CW102", "rflags")]),
        ({"es": 0x13}, [("CW103", "es")]),
        ({"ss": 0x33}, [("CW103", "ss")]),
        ({"rsp": 0x4002FFBC}, [("CW101", "rsp")]),
    ],
)
def test_a_task_gate_interrupts_like_any_other(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    user = task(cs=0x1B, ss=0x23, ds=0x23, es=0x23, rip=0x400001EA, rsp=0x4002FFC0, rflags=0x646)
    small = {"mode": 32, "flags": Flag.LINEAR32, "frame": 0, "stack": np.zeros(8, np.uint64)}
    rows = [entry(user | small, vector=40, frame=0), exit_(user | small | changes, How.TASK, frame=0)]
    assert found(*rows) == expected
