"""Entry paths that move the frame, change stacks or keep bits of their own in it."""

from __future__ import annotations

from typing import Any

from gdbext.arch.frames import FRAME_FIELDS
from gdbext.code.compare import compare, pairs
from gdbext.code.paths import Entry
from gdbext.code.savemap import save_maps
from gdbext.code.values import Start

PUSHES = "\n".join(f"push %{name}" for name in ("rdi", "rsi", "rdx", "rcx", "rax", "r8", "r9", "r10", "r11", "rbx",
                                                "rbp", "r12", "r13", "r14", "r15"))  # fmt: skip
POPS = "\n".join(line.replace("push", "pop") for line in reversed(PUSHES.splitlines()))


def test_software_bits_above_a_selector_are_no_loss(assemble: Any) -> None:
    snippet = assemble(
        """
    entry: andl $0xffff, 4(%esp)
        testl $3, 4(%esp)
        jnz 1f
        orl $0x20000000, 4(%esp)
    1:  pusha
        call handler
        popa
        andl $0xffff, 4(%esp)
        iret
    handler: nop
        ret
    """,
        bits=32,
    )
    save, restore = snippet.maps()
    assert save.never == ()
    assert {m.origin for m in save_maps(snippet.code, Entry(snippet["entry"]))} == {"user", "kernel"}
    assert not any(s.fault for s in compare(save, restore))


def test_privilege_level_compared_with_three(assemble: Any) -> None:
    snippet = assemble(
        """
    entry: push %eax
        mov 8(%esp), %eax
        and $3, %eax
        cmp $3, %eax
        jb 1f
        push %ebx
        jmp 2f
    1:  push %ecx
    2:  call handler
        hlt
    handler: nop
        ret
    """,
        bits=32,
    )
    stored = {m.origin: set(m.stored) - set(FRAME_FIELDS) for m in save_maps(snippet.code, Entry(snippet["entry"]))}
    assert stored == {"user": {"rax", "rbx"}, "kernel": {"rax", "rcx"}}


def test_stack_pointer_kept_in_a_register_over_the_call(assemble: Any) -> None:
    snippet = assemble(f"""
    entry: push $0
        {PUSHES}
        mov %rsp, %rbx
        mov %gs:8, %rsp
        call handler
        mov %rbx, %rsp
        {POPS}
        add $8, %rsp
        iretq
    handler: nop
        ret
    """)
    save, restore = snippet.maps()
    assert restore.area is not None
    assert restore.area[1] == Start("rbx")
    assert save.pointers["rbx"].text() == "frame-0x80"
    assert pairs([save], [restore]) == [(save, restore)]
    assert compare(save, restore) == []


def test_a_frame_copied_below_itself_is_not_shifted(assemble: Any) -> None:
    snippet = assemble(f"""
    entry: push $0
        {"push 40(%rsp);" * 6}
        {PUSHES}
        call handler
        {POPS}
        add $8, %rsp
        iretq
    handler: nop
        ret
    """)
    save, restore = snippet.maps()
    assert len(save.stored["rip"]) == 2
    assert not any(s.fault for s in compare(save, restore))


def test_nothing_is_said_of_stacks_reached_in_ways_not_followed(assemble: Any) -> None:
    snippet = assemble(f"""
    entry: push $0
        imul $24, %rsp, %rsp
        {PUSHES}
        call handler
        {POPS}
        add $8, %rsp
        iretq
    handler: nop
        ret
    """)
    assert pairs(*([m] for m in snippet.maps())) == []
