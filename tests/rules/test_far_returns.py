"""CW102 of a far return in front of which nothing has loaded flags."""

from __future__ import annotations

import pytest

from gdbext.rules.engine import Engine
from tests.rules.rows import Flag, How, batch, context, entry, exit_, stamp

CODE = context(1, user=False, rflags=0x203)


def found(how: int = How.INTERRUPT, value: int = 1, flags: int = Flag.FLAGS_PARTIAL) -> list[tuple[str, str | None]]:
    far = exit_(CODE | {"rflags": 0x202}, How.FAR, match=1, value=value, flags=flags, frame=0)
    engine = Engine()
    engine.feed(stamp(batch(entry(CODE, how), far)))
    return [(finding.code, finding.field) for finding in engine.findings]


def test_flags_that_nothing_has_put_back() -> None:
    assert found() == [("CW102", "rflags")]


def test_flags_that_may_have_been_put_back_further_up() -> None:
    assert found(value=0) == []


def test_flags_that_were_put_back_wrong() -> None:
    assert found(value=0, flags=0) == [("CW102", "rflags")]


@pytest.mark.parametrize("how", [How.EXCEPTION, How.NMI])
def test_exceptions_and_nmis_must_be_invisible_too(how: int) -> None:
    assert found(how) == [("CW102", "rflags")]


def test_a_call_of_kernel_code_s_own_may_change_its_flags() -> None:
    assert found(How.SOFT) == []
