"""CW108: threads that are taken up by an iret frame which the switch has built."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gdbext.events.row import ROW, Batch
from gdbext.rules.engine import Engine
from tests.rules.judged import judged
from tests.rules.rows import KERNEL_RIP, Kind, context, entry, exit_, stamp

STACK = 0xFFFF_FFFF_8010_0F00
BACK = KERNEL_RIP + 0x40


def found(*rows: Batch) -> list[tuple[str, str | None, int]]:
    """The codes found, their fields and events."""
    return [(finding.code, finding.field, finding.event) for finding in judged(*rows)]


def switch(kind: int, **fields: Any) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["mode"], row["pc"], row["rsp"] = kind, 64, KERNEL_RIP, STACK
    row["stack"][0][0] = BACK
    for name, value in fields.items():
        row[name] = value
    return row


def iret(rsp: int, rip: int = BACK) -> Batch:
    return exit_(context(user=False, rip=rip, rsp=rsp))


def test_a_thread_that_is_taken_up_as_it_left() -> None:
    assert found(switch(Kind.SWITCH_OUT), switch(Kind.SWITCH_IN), iret(STACK + 8)) == []


@pytest.mark.parametrize("off", [-16, -8, 8, 16])
def test_a_stack_pointer_that_is_off(off: int) -> None:
    assert found(switch(Kind.SWITCH_OUT), iret(STACK + 8 + off)) == [("CW108", "rsp", 2)]


@pytest.mark.parametrize("rsp", [STACK + 8 - 0x100, STACK + 0x1008, STACK + 5])
def test_another_stack(rsp: int) -> None:
    """A thread that goes on there for the first time, or one whose switch was not seen."""
    assert found(switch(Kind.SWITCH_OUT), iret(rsp)) == []


def test_another_place() -> None:
    assert found(switch(Kind.SWITCH_OUT), iret(STACK + 16, BACK + 1)) == []


def test_a_thread_that_is_not_away() -> None:
    assert found(switch(Kind.SWITCH_OUT), switch(Kind.SWITCH_IN), iret(STACK + 16)) == []


def test_a_thread_beside_the_place_of_one_that_died() -> None:
    one, other = switch(Kind.SWITCH_OUT, rsp=STACK + 16), switch(Kind.SWITCH_IN, rsp=STACK + 16)
    assert found(switch(Kind.SWITCH_OUT), one, other, iret(STACK + 24)) == []


class Functions:
    """A handler at 100h that calls two functions, whose `bodies` are given."""

    def __init__(self, *bodies: str) -> None:
        self._raw = {0x100: bytes.fromhex("e8fb000000 e8f6020000 48cf"), 0x200: b"", 0x400: b""}
        for at, body in zip((0x200, 0x400), bodies, strict=True):
            self._raw[at] = bytes.fromhex(body)

    def read(self, address: int, length: int) -> bytes:
        raw = next((raw[address - at :] for at, raw in self._raw.items() if 0 <= address - at < len(raw)), b"")
        if not raw:
            raise OSError("unmapped")
        return raw[:length]

    def symbol(self, address: int) -> str | None:
        return None


LOSES_RBX = "bb07000000 4801d8 c3"  # mov $7, %ebx; add %rbx, %rax; ret
KEEPS_RBX = "53 bb07000000 4801d8 5b c3"  # the same between push and pop


@pytest.mark.parametrize(("bodies", "codes"), [((LOSES_RBX, LOSES_RBX), []), ((LOSES_RBX, KEEPS_RBX), ["CW108"])])
def test_what_no_function_keeps_no_switch_need_keep(bodies: tuple[str, str], codes: list[str]) -> None:
    user = context(1)
    rows = entry(user, pc=0x100), exit_(user), switch(Kind.SWITCH_OUT, rbx=1), switch(Kind.SWITCH_IN, rbx=2)
    engine = Engine(guest=Functions(*bodies))
    engine.feed(stamp(np.concatenate(rows)))
    assert [finding.code for finding in engine.findings] == codes
