"""What expressions of a profile may name at an event."""

from __future__ import annotations

import pytest

from gdbext.events.row import empty
from gdbext.sources.areas import _scope_of


@pytest.mark.parametrize("simd", [False, True])
def test_registers_have_their_values_with_simd_state_behind_them_too(simd: bool) -> None:
    row = empty(1, simd=simd)
    row["rdi"] = 0x1234
    scope = _scope_of(row, 0xFFFF_8000_0000_1000, lambda _: None, lambda *_: b"", 8)
    assert scope.registers["rdi"] == 0x1234
    assert scope.registers["gs_base"] == 0xFFFF_8000_0000_1000
