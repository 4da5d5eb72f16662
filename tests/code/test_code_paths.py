"""Exploration from entry points."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdbext.code.disasm import Code
from gdbext.code.paths import Entry, Gateway, Limits, explore


def test_exits_swapgs_and_bases_of_an_interrupt_path(assemble: Any) -> None:
    snippet = assemble("""
    entry: testb $3, 8(%rsp)
        jz 1f
    swap_in: swapgs
    1:  push %rax
        call handler
        pop %rax
        testb $3, 8(%rsp)
        jz 2f
    swap_out: swapgs
    2:
    out: iretq
    handler:
        mov $0xc0000101, %ecx
    msr: wrmsr
    base: wrfsbase %rax
    idt: lidt (%rdi)
    shadow: sti
        ret
    """)
    reach = explore(snippet.code, [snippet["entry"]])
    assert [(e.address, e.how, e.word, e.to_itself) for e in reach.exits] == [(snippet["out"], "iret", 8, False)]
    assert reach.swapgs == [snippet["swap_in"], snippet["swap_out"]]
    assert [(m.address, m.name, m.msr) for m in reach.msrs] == [
        (snippet["msr"], "wrmsr", 0xC000_0101),
        (snippet["base"], "wrfsbase", None),
    ]
    assert reach.lidt == [snippet["idt"]]
    assert reach.shadows == [snippet["shadow"]]
    assert reach.depth(snippet["msr"]) == 1


def test_syscall_stack_switch_and_sysret(assemble: Any) -> None:
    snippet = assemble("""
    entry: swapgs
        mov %rsp, %gs:16
        mov %gs:8, %rsp
        push %rax
        lea 8(%rsp), %rsp
        sub $8, %rsp
        pop %rax
        mov %gs:16, %rsp
        swapgs
    out: sysretq
    """)
    reach = explore(snippet.code, [Entry(snippet["entry"], Gateway.SYSCALL)])
    assert [(e.address, e.how, e.word) for e in reach.exits] == [(snippet["out"], "sysret", 8)]
    assert reach.switch_functions == []


@pytest.mark.parametrize(
    "indirect",
    [
        "mov $out, %rax; jmp *%rax",
        "lea out(%rip), %rax; jmp *%rax",
        "movabs $out, %rax; nop; jmp *%rax",
        "push $out; ret",
        "lea out(%rip), %rax; push %rax; ret",
        "jmp *pointer(%rip)",
        "jmp *pointer",
        "call *pointer(%rip)",
        "mov $out, %rax; call *%rax",
    ],
)
def test_cheap_indirect_branches_are_resolved(assemble: Any, indirect: str) -> None:
    snippet = assemble(f"entry: {indirect}\n ud2\n pointer: .quad out\n out: iretq")
    reach = explore(snippet.code, [snippet["entry"]])
    assert [e.address for e in reach.exits] == [snippet["out"]]
    assert reach.indirect == []


def test_what_cannot_be_followed_is_named(assemble: Any) -> None:
    snippet = assemble("""
    entry: mov $out, %rax
        pop %rax
    one: call *%rax
    two: jmp *table(,%rdi,8)
    out: iretq
    table: .quad 0
    """)
    reach = explore(snippet.code, [snippet["entry"]])
    assert reach.exits == []
    assert [(i.address, i.call) for i in reach.indirect] == [(snippet["one"], True), (snippet["two"], False)]


def test_serialising_iret_is_told_apart(assemble: Any) -> None:
    snippet = assemble("""
    entry: pushq $1f
    itself: iretq
    1:  lea 2f(%rip), %rax
        push %rax
    also: iretq
    2:  push $entry
    out: iretq
    """)
    reach = explore(snippet.code, [snippet["entry"]])
    # A path ends at an iret, also at one to itself: the rest is reached from an entry of its own.
    assert [(e.address, e.to_itself) for e in reach.exits] == [(snippet["itself"], True)]


def test_switch_function(assemble: Any) -> None:
    snippet = assemble("""
    entry: call schedule
        iretq
    schedule: call taskswitch
        ret
    taskswitch: push %rbx
        push %rbp
        pushfq
        mov %rsp, (%rdi)
    load: mov (%rsi), %rsp
        popfq
        pop %rbp
        pop %rbx
    end: ret
    """)
    reach = explore(snippet.code, [snippet["entry"]])
    (found,) = reach.switch_functions
    assert (found.entry, found.load, found.ends) == (snippet["taskswitch"], snippet["load"], (snippet["end"],))


def test_switch_that_ends_in_a_tail_jump(assemble: Any) -> None:
    snippet = assemble("""
    entry: call switch
        iretq
    switch: push %rbx
        mov %rsp, 8(%rdi)
        mov 8(%rsi), %rsp
        call 2f             # fills the return stack buffer
        int3
    2:  add $8, %rsp
        pop %rbx
    end: jmp finish
        .skip 1024, 0xcc
    finish: ret
    """)
    (found,) = explore(snippet.code, [snippet["entry"]]).switch_functions
    assert found.ends == (snippet["end"],)


@pytest.mark.parametrize(
    "turn",
    ["xchg %rsp, %rsi; mov %rsi, (%rdi)", "mov %rsp, %rax; mov %rsi, %rsp; mov %rax, (%rdi)"],
    ids=["xchg", "copied"],
)
def test_switch_by_another_register(assemble: Any, turn: str) -> None:
    snippet = assemble(f"""
    entry: call switch
        iretq
    switch: push %rbx
        {turn}
        pop %rbx
    end: ret
    """)
    (found,) = explore(snippet.code, [snippet["entry"]]).switch_functions
    assert (found.entry, found.ends) == (snippet["switch"], (snippet["end"],))


def test_borrowing_a_stack_is_no_switch(assemble: Any) -> None:
    snippet = assemble("""
    entry: call on_irq_stack
        iretq
    on_irq_stack:
        mov %rsp, (%r11)
        mov %r11, %rsp
        call work
        pop %rsp
        ret
    work: ret
    """)
    reach = explore(snippet.code, [snippet["entry"]])
    assert reach.switch_functions == []


def test_ia32_paths(assemble: Any) -> None:
    snippet = assemble(
        """
    entry: pusha
        mov %ds, %eax
        push %eax
        mov $0x10, %eax
    ss: mov %eax, %ss
        call switch
        pop %eax
        popa
    out: iret
    switch: push %ebx
        mov %esp, (%eax)
        mov (%edx), %esp
        pop %ebx
    end: ret
    sysenter:
    out2: sysexit
    """,
        bits=32,
    )
    reach = explore(snippet.code, [snippet["entry"], Entry(snippet["sysenter"], Gateway.SYSENTER)])
    assert [(e.address, e.how, e.word) for e in reach.exits] == [
        (snippet["out"], "iret", 4),
        (snippet["out2"], "sysexit", 4),
    ]
    assert reach.shadows == [snippet["ss"]]
    assert [f.ends for f in reach.switch_functions] == [(snippet["end"],)]


def test_near_is_found_before_far(assemble: Any) -> None:
    snippet = assemble("""
    entry: call big
    out: iretq
    big: .rept 5000
        nop
        .endr
        ret
    """)
    reach = explore(snippet.code, [snippet["entry"]], Limits(instructions=100, stretch=50))
    assert [e.address for e in reach.exits] == [snippet["out"]]
    assert len(reach.successors) <= 150


def test_zeroed_memory_is_not_code() -> None:
    reach = explore(Code(lambda address, length: bytes(length), 64), [0x1000])
    assert list(reach.successors) == [0x1000]


@settings(deadline=None)
@given(st.binary(max_size=600), st.sampled_from([32, 64]))
def test_random_bytes_never_raise_or_hang(data: bytes, bits: int) -> None:
    def read(address: int, length: int) -> bytes:
        if not 0x1000 <= address < 0x1000 + len(data):
            raise OSError("unmapped")
        return data[address - 0x1000 : address - 0x1000 + length]

    reach = explore(Code(read, bits), [0x1000, 0x1010], Limits(instructions=2000))
    assert len(reach.successors) <= 4000
    for address in reach.successors:
        assert 0x1000 <= address < 0x1000 + len(data)
