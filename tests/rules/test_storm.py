"""CW901: faults of kernel code without end."""

from __future__ import annotations

from typing import Any

from gdbext.arch.vectors import GP
from gdbext.events.row import Batch
from gdbext.rules.storm import AGAIN, DEEPER
from tests.rules.judged import judged
from tests.rules.rows import How, context, entry, exit_

FRAME = 0xFFFF_8000_0010_0000


def found(*rows: Batch) -> list[str]:
    """The codes found."""
    return [finding.code for finding in judged(*rows)]


def fault(frame: int = FRAME, **changes: Any) -> Batch:
    where = context(1, user=False) | {name: changes.pop(name) for name in ("rip", "rbx", "cs") if name in changes}
    return entry(where, How.EXCEPTION, vector=GP, frame=frame, **changes)


def test_one_fault_again_and_again() -> None:
    assert found(*[fault() for _ in range(AGAIN - 1)]) == []
    assert found(*[fault() for _ in range(3 * AGAIN)]) == ["CW901"]


def test_faults_on_top_of_each_other() -> None:
    assert found(*[fault(FRAME - 48 * n) for n in range(DEEPER)]) == ["CW901"]
    assert found(*[fault(FRAME - 48 * n) for n in range(DEEPER - 1)]) == []
    assert found(*[fault(FRAME - 48 * n, rip=FRAME + n) for n in range(DEEPER)]) == []


def test_faults_that_are_resumed_or_get_somewhere() -> None:
    where = context(1, user=False)
    resumed = [row for _ in range(2 * AGAIN) for row in (fault(), exit_(where, frame=FRAME))]
    assert found(*resumed) == []
    assert found(*[fault(rbx=n) for n in range(2 * AGAIN)]) == []
    elsewhere = [row for _ in range(2 * AGAIN) for row in (fault(), entry(context(2), cpu=1), exit_(context(2), cpu=1))]
    assert found(*elsewhere) == ["CW901"]


def test_user_code_may_fault_for_ever() -> None:
    user = context(1)
    rows = [row for _ in range(2 * AGAIN) for row in (entry(user, How.EXCEPTION, vector=GP), exit_(user))]
    assert found(*rows) == []
