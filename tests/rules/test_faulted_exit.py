"""CW402 of a context that lies lower than where its exit pops it, which faults there."""

from __future__ import annotations

import pytest

from gdbext.arch.vectors import GP, SS
from gdbext.events.row import Batch
from gdbext.rules.engine import Engine
from gdbext.rules.guest import NoGuest
from tests.rules.rows import Flag, How, batch, context, entry, exit_, stamp

FRAME = 0xC0113F00
EXIT = 0xC0100200
POPS = "1f 83c408 cf"  # pop ds; add esp, 8; iret


def found(code: str, *rows: Batch) -> list[tuple[str, str | None]]:
    """What is found where `code` lies at EXIT."""

    class Guest(NoGuest):
        def read(self, address: int, length: int) -> bytes:
            return (bytes.fromhex(code) + bytes(32))[address - EXIT :][:length]

    engine = Engine(guest=Guest())
    engine.feed(stamp(batch(*rows)))
    return [(finding.code, finding.field) for finding in engine.findings]


def story(pushed: int, *, resumed: int = FRAME, below: int = 12) -> tuple[Batch, Batch, Batch]:
    """An idle thread is resumed from `resumed`, and interrupted when it has pushed; its exit faults `below` FRAME."""
    flags = Flag.LINEAR32 | Flag.NO_STACK
    idle = context(user=False, rip=0xC0101000, rsp=FRAME + 12, cs=8, ss=0x10, rflags=0x202, mode=32, flags=flags)
    later = idle | {"rip": 0xC0101004, "rsp": idle["rsp"] - pushed}
    frame = [later["rip"], 8, 0x202, 7, 7, 7, 7, 7]
    leaves = context(2, user=False, rip=EXIT, rsp=FRAME - below, cs=8, ss=0x10, mode=32, flags=flags)
    return (
        exit_(idle, frame=resumed),
        entry(later, frame=FRAME - pushed, stack=[frame]),
        entry(leaves, How.EXCEPTION, vector=GP, frame=FRAME - below - 12),
    )


@pytest.mark.parametrize("pushed", [4, 16, 64])
def test_an_exit_faults_on_what_it_pops_for_a_selector(pushed: int) -> None:
    assert ("CW402", "rsp") in found(POPS, *story(pushed))


def test_the_iret_itself_faults() -> None:
    begins, interrupted, fault = story(16, below=0)
    fault["vector"] = SS
    assert ("CW402", "rsp") in found("cf", begins, interrupted, fault)


def test_faults_of_other_exits_and_of_other_code() -> None:
    begins, interrupted, fault = story(16)
    assert found("0f30", begins, interrupted, fault) == []  # wrmsr
    assert found("1f 83c404 cf", begins, interrupted, fault) == []  # it would have popped elsewhere
    assert found(POPS, *story(16, resumed=FRAME - 0x400)) == []  # the thread was not resumed from there
    assert found(POPS, *story(0)) == []  # nothing was pushed


def test_a_context_that_was_resumed_meanwhile() -> None:
    begins, interrupted, fault = story(16)
    later = {name: interrupted[name][0] for name in ("rip", "rsp", "cs", "ss", "rflags", "mode", "flags")}
    back = exit_(context(user=False) | later, frame=FRAME - 16, match=2)
    assert ("CW402", "rsp") not in found(POPS, begins, interrupted, back, fault)
