"""The instruction that made a store, found where a watchpoint stopped behind it."""

from __future__ import annotations

import pytest

from gdbext.code.disasm import Code
from gdbext.code.storing import Stored, stored
from tests.code.conftest import Assemble

SLOT = 0xFFFF_FFFF_8050_0088
STACK = SLOT & ~0xFFF | 0xF00


@pytest.mark.parametrize(
    ("made", "registers", "size"),
    [
        ("mov %rcx, 0x88(%rdi)", {"rdi": SLOT - 0x88}, 8),
        ("mov %ecx, 0x88(%rdi)", {"rdi": SLOT - 0x88}, 4),
        ("mov %rax, %gs:0x18", {"gs_base": SLOT - 0x18}, 8),
        ("movq $0, (%rsi,%rax,8)", {"rsi": SLOT - 0x80, "rax": 0x10}, 8),
        ("pop (%rbx)", {"rbx": SLOT}, 8),
        ("xchg %rax, (%rbx)", {"rbx": SLOT}, 8),
        ("stosq", {"rdi": SLOT + 8}, 8),
    ],
)
def test_instructions_that_name_where_they_store(
    assemble: Assemble, made: str, registers: dict[str, int], size: int
) -> None:
    code = assemble(f"entry: mov (%rax), %rbx; and $-8, %rbx\nit: {made}\nbehind: cmp %rax, (%rdi); ret")
    at = {"rsp": STACK, "rip": code["behind"], **registers}
    assert stored(code.code, at, SLOT, SLOT + 8) == Stored(code["it"], SLOT, size)


def test_a_push_and_a_call(assemble: Assemble) -> None:
    code = assemble("entry: push %rdi\npushed: dec %rdi\ncalls: call entry\nback: pop %rdi; ret")
    at = {"rsp": SLOT, "rip": code["pushed"]}
    assert stored(code.code, at, SLOT - 64, SLOT + 8) == Stored(code["entry"], SLOT, 8, True)

    def read(address: int, length: int) -> bytes:
        return code["back"].to_bytes(8, "little")[:length] if address == SLOT else code.read(address, length)

    called = Code(read, 64)
    assert stored(called, at | {"rip": code["entry"]}, SLOT - 64, SLOT + 8) == Stored(code["calls"], SLOT, 8, True)


def test_code_that_stores_elsewhere_is_not_blamed(assemble: Assemble) -> None:
    code = assemble("entry: mov %rax, (%rdi)\nbehind: cmp %rax, (%rsi)\nlater: ret")
    registers = {"rsp": STACK, "rdi": SLOT + 64, "rsi": SLOT}
    for place in ("behind", "later"):
        assert stored(code.code, registers | {"rip": code[place]}, SLOT, SLOT + 8) is None
