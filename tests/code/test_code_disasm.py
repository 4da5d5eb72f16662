"""Decoding, operands, and listings around an address."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdbext.code.disasm import PAGE, Code, Flow, constant_in
from gdbext.code.listing import listing, text
from gdbext.code.operands import Imm, Mem, Reg


def at(data: bytes, base: int = 0x1000, bits: int = 64) -> Code:
    def read(address: int, length: int) -> bytes:
        if not base <= address < base + len(data):
            raise OSError("unmapped")
        return data[address - base : address - base + length]

    return Code(read, bits)


def shown(code: Code, address: int) -> str:
    insn = code.insn(address)
    assert insn is not None
    return text(insn)


@pytest.mark.parametrize(
    ("raw", "bits", "operands"),
    [
        ("65488b042508000000", 64, (Reg("rax", 8), Mem("gs", "", "", 1, 8, 8))),
        ("4a8b44a080", 64, (Reg("rax", 8), Mem("", "rax", "r12", 4, -0x80, 8))),
        ("488b0510000000", 64, (Reg("rax", 8), Mem("", "", "", 1, 0x1017, 8))),
        ("b412", 64, (Reg("rax", 1, True), Imm(0x12))),
        ("4488f8", 64, (Reg("rax", 1), Reg("r15", 1))),
        ("6aff", 64, (Imm(-1),)),
        ("480fae00", 64, (Mem("", "rax", "", 1, 0, 0),)),
        ("ff2500100000", 32, (Mem("", "", "", 1, 0x1000, 4),)),
        ("8ed8", 32, (Reg("ds", 2), Reg("rax", 4))),
        ("0f22d8", 64, (Reg("cr3", 8), Reg("rax", 8))),
        ("a4", 32, (Mem("es", "rdi", "", 1, 0, 1), Mem("", "rsi", "", 1, 0, 1))),
    ],
)
def test_operands_are_those_of_the_bytes(raw: str, bits: int, operands: tuple[object, ...]) -> None:
    insn = at(bytes.fromhex(raw), bits=bits).insn(0x1000)
    assert insn is not None
    assert insn.operands == operands


@pytest.mark.parametrize(
    ("raw", "flow", "target"),
    [
        ("48cf", Flow.EXIT, None),
        ("cf", Flow.EXIT, None),
        ("480f07", Flow.EXIT, None),
        ("0f35", Flow.EXIT, None),
        ("eb10", Flow.JUMP, 0x1012),
        ("7410", Flow.BRANCH, 0x1012),
        ("e2fe", Flow.BRANCH, 0x1000),
        ("e800000000", Flow.CALL, 0x1005),
        ("3effe0", Flow.JUMP, None),
        ("f3c3", Flow.RETURN, None),
        ("0f0b", Flow.STOP, None),
        ("f4", Flow.NEXT, None),
    ],
)
def test_flow(raw: str, flow: Flow, target: int | None) -> None:
    insn = at(bytes.fromhex(raw)).insn(0x1000)
    assert insn is not None
    assert (insn.flow, insn.target) == (flow, target)


def test_far_jump_of_ia32_has_its_target() -> None:
    insn = at(bytes.fromhex("ea112233440800"), bits=32).insn(0x1000)
    assert insn is not None
    assert insn.target == 0x44332211


def test_unmapped_and_undecodable_are_none() -> None:
    code = at(b"\x90\xc0")
    assert code.insn(0x1000) is not None
    assert code.insn(0x1001) is None
    assert code.insn(0x5000) is None
    assert code.insn(-1) is None


def test_code_that_starts_in_mid_page_and_crosses_a_page() -> None:
    code = at(b"\x48\xb8" + bytes(8) + b"\x90", base=2 * PAGE - 3)
    first = code.insn(2 * PAGE - 3)
    assert first is not None
    assert first.name == "movabs"
    assert shown(code, first.end) == "nop"


def test_a_short_read_ends_what_is_mapped() -> None:
    code = Code(lambda address, length: b"\x90" * 8 if address == 0x1000 else b"", 64)
    assert code.bytes_at(0x1000, 100) == b"\x90" * 8


def test_what_cannot_be_read_is_asked_for_once() -> None:
    asked = []

    def read(address: int, length: int) -> bytes:
        asked.append((address, length))
        raise OSError("unmapped")

    code = Code(read, 64)
    assert [code.bytes_at(address, 8) for address in (0x1010, 0x1010, 0x1020, 0x1010)] == 4 * [b""]
    assert asked == [(0x1000, PAGE), (0x1010, PAGE - 0x10), (0x1020, PAGE - 0x20)]


def test_constants() -> None:
    code = at(bytes.fromhex("b9820000c04831c0488d0500000000b001"))
    values = []
    address = 0x1000
    for name in ("rcx", "rax", "rax", "rax"):
        insn = code.insn(address)
        assert insn is not None
        values.append(constant_in(insn, name))
        address = insn.end
    assert values == [0xC000_0082, 0, 0x100F, None]


def test_effects_name_implicit_registers() -> None:
    code = at(bytes.fromhex("0fa2"))
    insn = code.insn(0x1000)
    assert insn is not None
    read, written = code.effects(insn)
    assert {"rax", "rcx"} <= read
    assert {"rax", "rbx", "rcx", "rdx"} <= written


SOURCE = """
    .rept 8
    mov %rsp, 8(%rdi)
    xor %edi, %edi
    add $0x100, %rcx
    .endr
f:  push %rbp
    mov %rsp, %rbp
    movabs $0x1122334455667788, %rax
    mov %gs:8, %rcx
    and $1, %eax
    cmp $0, %rax
here: jne f
    ret
"""


def test_listing_around_an_address(assemble) -> None:  # type: ignore[no-untyped-def]
    snippet = assemble(SOURCE)
    by_vote = listing(snippet.code, snippet["here"], before=4, after=1)
    by_hint = listing(snippet.code, snippet["here"], before=4, after=1, start=snippet["f"])
    assert [text(insn) for insn in by_hint] == [
        "movabs rax, 0x1122334455667788",
        "mov rcx, qword ptr gs:[8]",
        "and eax, 1",
        "cmp rax, 0",
        f"jne {snippet['f']:#x}",
        "ret",
    ]
    assert by_vote == by_hint


def test_listing_of_nothing() -> None:
    assert listing(at(b"\x90"), 0x9000) == []


def test_an_address_beyond_32_bits_is_its_lower_half_in_32_bit_code() -> None:
    code = Code(lambda address, length: b"\x90" * length, 32)
    assert [insn.address for insn in listing(code, 0x1_0000_1000, 1, 1)] == [0xFFF, 0x1000, 0x1001]


@given(st.binary(max_size=200), st.integers(0, 200), st.sampled_from([32, 64]))
def test_random_bytes_never_raise(data: bytes, offset: int, bits: int) -> None:
    code = at(data, bits=bits)
    lines = listing(code, 0x1000 + offset, 5, 5)
    for first, second in pairwise(lines):
        assert first.end == second.address
    for insn in lines:
        assert isinstance(insn.operands, tuple)
        code.effects(insn)
