"""Thread switches found by pattern."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdbext.code.disasm import Code
from gdbext.code.scan import scan_switches


@pytest.mark.parametrize("bits", [64, 32])
def test_switches_in_a_range(assemble: Any, bits: int) -> None:
    old, new, sp, rest = ("%rdi", "%rsi", "%rsp", "%rbx") if bits == 64 else ("%eax", "%edx", "%esp", "%ebx")
    snippet = assemble(
        f"""
        mov $1, %eax
        ret
        .balign 16, 0x90
    switch: push {rest}
        pushf
        mov {sp}, 0x18({old})
    load: mov 0x18({new}), {sp}
        popf
        pop {rest}
    end: ret
        .skip 5000, 0xcc
    borrow: mov {sp}, ({new})
        mov {new}, {sp}
        call switch
        pop {sp}
        ret
        .skip 100, 0xcc
    tail: push {rest}
        mov {sp}, ({old})
        mov {new}, {sp}
        pop {rest}
    out: jmp switch
    last: nop
        """,
        bits=bits,
    )
    found = scan_switches(snippet.code, snippet.base, snippet["last"])
    assert [(f.entry, f.ends) for f in found] == [
        (snippet["switch"], (snippet["end"],)),
        (snippet["tail"], (snippet["out"],)),
    ]
    assert found[0].load == snippet["load"]
    assert scan_switches(snippet.code, snippet["borrow"], snippet["tail"]) == []


@given(st.binary(max_size=400), st.sampled_from([32, 64]))
def test_random_bytes_never_raise(data: bytes, bits: int) -> None:
    def read(address: int, length: int) -> bytes:
        return data[address - 0x1000 : address - 0x1000 + length] if 0x1000 <= address < 0x1000 + len(data) else b""

    for function in scan_switches(Code(read, bits), 0x0, 0x3000):
        assert 0x1000 <= function.entry <= function.store < 0x1000 + len(data)
