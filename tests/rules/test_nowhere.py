"""CW403 of a thread that is taken up and goes on where no kernel code is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gdbext.arch.vectors import DF, GP, PF, UD
from gdbext.events.row import ROW, Batch
from gdbext.rules.engine import Engine
from gdbext.rules.guest import NoGuest
from tests.rules.judged import judged
from tests.rules.rows import KERNEL_RIP, How, Kind, batch, context, entry, exit_, stamp

LOW = 0x93


def found(*rows: Batch) -> list[tuple[str, str | None]]:
    """The codes found."""
    return [(finding.code, finding.field) for finding in judged(*rows)]


def switch(kind: int, cpu: int = 0) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["mode"], row["rsp"], row["cpu"] = kind, 64, 0xFFFF_8000_0010_0000, cpu
    return row


def faults(rip: int = LOW, cr2: int | None = None, **changes: Any) -> Batch:
    """A page fault of kernel code at `rip`."""
    where = context(1, user=False, rip=rip, cr2=rip if cr2 is None else cr2)
    return entry(where, How.EXCEPTION, vector=PF, **changes)


@pytest.mark.parametrize("rip", [0, LOW, 0x400672])
@pytest.mark.parametrize("kind", [Kind.SWITCH_IN, Kind.SWITCH_OUT])
def test_a_thread_that_goes_on_nowhere(rip: int, kind: int) -> None:
    assert found(switch(kind), faults(rip)) == [("CW403", "rip")]


@pytest.mark.parametrize("vector", [UD, GP, PF])
def test_a_thread_that_runs_what_is_mapped_at_0(vector: int) -> None:
    ran = faults(LOW, cr2=0xF000_0000)
    ran["vector"] = vector
    assert found(switch(Kind.SWITCH_IN), ran) == [("CW403", "rip")]
    assert found(ran) == []


def test_page_tables_tell_of_a_switch_that_was_not_seen() -> None:
    user = context(2)
    turned = switch(Kind.CR3)
    assert found(entry(user), turned, faults(0)) == [("CW403", "rip")]
    same = faults(0)
    same["cr3"] = user["cr3"]
    assert found(entry(user), turned, same) == []


def test_a_call_through_a_null_pointer_is_none() -> None:
    user = context(2)
    assert found(switch(Kind.SWITCH_IN), exit_(user), entry(user, How.SYSCALL), faults(0)) == []
    assert found(switch(Kind.SWITCH_IN, cpu=1), faults(0)) == []


def test_data_that_is_not_there_is_another_matter() -> None:
    assert found(switch(Kind.SWITCH_IN), faults(0xFFFF_8000_0000_1000, cr2=0)) == []


def test_kernels_in_the_lower_half_may_map_their_code_late() -> None:
    assert found(switch(Kind.SWITCH_IN), faults(0x400672, pc=0x100000)) == []
    assert found(switch(Kind.SWITCH_IN), faults(LOW, pc=0x100000)) == [("CW403", "rip")]


def double_fault(rsp: int, cr2: int) -> Batch:
    return entry(context(1, user=False, rsp=rsp, cr2=cr2), How.EXCEPTION, vector=DF)


STACK = 0xFFFF_8000_0010_0000


@pytest.mark.parametrize(("rsp", "cr2"), [(0, 2**64 - 8), (0x7FFF_0000, 0x7FFE_FFF8)])
def test_a_thread_whose_stack_pointer_is_nowhere(rsp: int, cr2: int) -> None:
    assert ("CW403", "rsp") in found(switch(Kind.SWITCH_IN), double_fault(rsp, cr2))


@pytest.mark.parametrize(("rsp", "cr2"), [(STACK, STACK - 8), (0x7FFF_0000, 0)])
def test_a_stack_that_is_used_up_and_a_double_fault_of_another_kind(rsp: int, cr2: int) -> None:
    assert ("CW403", "rsp") not in found(switch(Kind.SWITCH_IN), double_fault(rsp, cr2))


@pytest.mark.parametrize(("code", "codes"), [("48cb", ["CW403"]), ("c3", ["CW403"]), ("48cf", []), ("0f30", [])])
def test_a_return_that_faults(code: str, codes: list[str]) -> None:
    class Guest(NoGuest):
        def read(self, address: int, length: int) -> bytes:
            return (bytes.fromhex(code) + bytes(16))[address - KERNEL_RIP :][:length]

    engine = Engine(guest=Guest())
    fault = entry(context(1, user=False, rip=KERNEL_RIP), How.EXCEPTION, vector=GP)
    engine.feed(stamp(batch(switch(Kind.SWITCH_IN), fault)))
    assert [finding.code for finding in engine.findings] == codes
