"""CW105 where CR0.TS hides whose the FPU is: a thread gets back what it had there last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gdbext.events.row import ROW_SIMD, Batch
from tests.rules.judged import judged
from tests.rules.rows import Flag, How, context, entry, exit_

MINE, OTHERS = context(1), context(2)


def found(*rows: Batch) -> list[tuple[str, str]]:
    """The codes found and the fields they name."""
    return [(finding.code, ",".join(d.field for d in finding.differences)) for finding in judged(*rows)]


def with_fpu(row: Batch, xmm0: int | None) -> Batch:
    """The row with this in XMM0; None: CR0.TS is set, and the FPU holds what is nobody's business."""
    wide = np.zeros(1, ROW_SIMD)
    for name in row.dtype.names or ():
        wide[name] = row[name]
    wide["simd"]["xmm"][0][0][0] = 0xDEAD if xmm0 is None else xmm0
    wide["flags"] |= Flag.SIMD | (Flag.FPU_OFF if xmm0 is None else 0)
    return wide


def stops(ctx: dict[str, Any], xmm0: int | None, **changes: Any) -> Batch:
    return with_fpu(entry(ctx, **changes), xmm0)


def goes_on(ctx: dict[str, Any], xmm0: int | None, **changes: Any) -> Batch:
    return with_fpu(exit_(ctx, **changes), xmm0)


def uses(ctx: dict[str, Any], xmm0: int | None, **changes: Any) -> tuple[Batch, Batch]:
    """#NM: the thread gets the FPU."""
    return stops(ctx, None, how=How.EXCEPTION, vector=7, **changes), goes_on(ctx, xmm0, **changes)


USED = [stops(MINE, None), *uses(MINE, 0), stops(MINE, 5)]
"""The first thread is given the FPU, and loads XMM0."""
AWAY = [goes_on(OTHERS, None), *uses(OTHERS, 0), stops(OTHERS, 7)]
"""Another one has it meanwhile."""


@pytest.mark.parametrize("later", [[], [stops(MINE, None), goes_on(MINE, None)]], ids=["at once", "interrupted again"])
def test_the_owner_gets_the_registers_of_another(later: list[Batch]) -> None:
    back = [goes_on(MINE, None), *later]
    assert found(*USED, *AWAY, *back, *uses(MINE, 7)) == [("CW105", "xmm0")]
    assert found(*USED, *AWAY, *back, *uses(MINE, 5)) == []


def test_on_another_cpu() -> None:
    back = goes_on(MINE, None, cpu=1)
    assert found(*USED, *AWAY, back, *uses(MINE, 7, cpu=1)) == [("CW105", "xmm0")]


def test_a_thread_that_never_used_it_is_given_a_fresh_one() -> None:
    idle = [goes_on(MINE, 9), stops(MINE, 9)]
    assert found(stops(OTHERS, None), *idle, *AWAY, goes_on(MINE, None), *uses(MINE, 0)) == []


def test_two_threads_at_one_place() -> None:
    """Neither of them is known to be the one that comes back."""
    twins = [*USED, goes_on(OTHERS, None), *uses(OTHERS, 0), stops(MINE, 7)]
    assert found(*twins, goes_on(MINE, None), *uses(MINE, 7)) == []


def test_ts_set_by_the_interrupt_itself() -> None:
    """A task gate: what the thread changed since its return is not seen."""
    gate = [goes_on(MINE, 5), stops(MINE, None), goes_on(MINE, None)]
    assert found(*USED, *gate, *uses(MINE, 6)) == []
