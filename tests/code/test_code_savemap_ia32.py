"""Values followed through the ways that ia32 kernels go in and out."""

from __future__ import annotations

from typing import Any

from gdbext.arch.frames import FRAME_FIELDS
from gdbext.code.compare import Kind, compare
from gdbext.code.paths import Entry
from gdbext.code.savemap import save_maps
from gdbext.profiles.learn import learn


def test_ia32_pusha_and_segments(assemble: Any) -> None:
    snippet = assemble(
        """
    entry: push $0
        pusha
        push %ds
        push %fs
        mov $0x10, %eax
        mov %eax, %ds
        push %esp
        call handler
        add $4, %esp
        pop %fs
        pop %ds
        popa
        add $4, %esp
        iret
    handler: nop
        ret
    """,
        bits=32,
    )
    save, restore = snippet.maps()
    assert save.never == ()
    assert {"ds", "fs"} <= restore.loaded.keys()
    # popa skips the ESP that pusha stored; the resumed one comes from the frame
    assert compare(save, restore) == []


# The way of Linux on ia32: a 16-bit stack is left by lss, a context on the stack for entries is copied to the thread's,
# as a whole or (from kernel code) as far as it reaches.
ENTRY_STACK = """
entry: push $0
    push $0
    push %fs
    cmpw $0xd0, stack_selector
    jne 1f
    lss (%esp), %esp
1:  push %es; push %ds; push %eax; push %ebp; push %edi; push %esi; push %edx; push %ecx; push %ebx
    mov %esp, %esi
    mov thread_stack, %edi
    mov 0x34(%esp), %ecx
    and $3, %ecx
    cmp $3, %ecx
    jb 3f
    mov $0x44, %ecx
2:  sub %ecx, %edi
    mov %edi, %esp
    shr $2, %ecx
    rep movsl
    jmp 4f
3:  mov entry_stack, %ecx
    sub %esi, %ecx
    jmp 2b
4:  movl $-1, 0x2c(%esp)
    call handler
    pop %ebx; pop %ecx; pop %edx; pop %esi; pop %edi; pop %ebp; pop %eax; pop %ds; pop %es; pop %fs
    add $8, %esp
    iret
handler: ret
stack_selector: .long 0
thread_stack: .long 0
entry_stack: .long 0
"""


def test_stacks_that_are_left_unseen_are_not_followed(assemble: Any) -> None:
    snippet = assemble(ENTRY_STACK, bits=32)
    entry = Entry(snippet["entry"])
    for through in (False, True):
        for save in save_maps(snippet.code, entry, through):
            assert save.on_stack
            assert {*save.layout} >= {"rip", "cs", "rflags", "rsp", "ss"}
    learnt = learn(snippet.code, [entry])
    assert learnt.on_stack
    assert learnt.statements == []
    names = ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rax", "ds", "es", "fs", "", "error", *FRAME_FIELDS)
    assert learnt.slots == {name: 4 * at for at, name in enumerate(names) if name}


# The way of seL4 on ia32: on entry ESP points behind the registers in the TCB, which are pushed; the way out sets ESP
# to the TCB and pops.
TCB_SAVE = """
entry: push $0
    push %gs_base_of
    push %ebp; push %edi; push %esi; push %edx; push %ecx; push %ebx; push %eax
    mov $kernel_stack, %esp
    call handler
    hlt
restore: mov current, %eax
    mov %eax, %esp
    pop %eax; pop %ebx; pop %ecx; pop %edx; pop %esi; pop %edi; pop %ebp
    {drop}
    iret
handler: nop
    ret
gs_base_of: .long 0
current: .long 0
.skip 64
kernel_stack: .long 0
"""


def test_context_pushed_into_a_tcb(assemble: Any) -> None:
    source = TCB_SAVE.replace("push %gs_base_of", "push gs_base_of")
    snippet = assemble(source.format(drop="add $8, %esp"), bits=32)
    save, restore = snippet.maps(None, "restore")
    words = {name: (offset - save.base) // 4 for name, offset in save.layout.items()}
    assert words == {
        "rax": 0, "rbx": 1, "rcx": 2, "rdx": 3, "rsi": 4, "rdi": 5, "rbp": 6,
        "rip": 9, "cs": 10, "rflags": 11, "rsp": 12, "ss": 13,
    }  # fmt: skip
    assert restore.layout == {name: 4 * word for name, word in words.items()}
    assert compare(save, restore) == []

    shifted = assemble(source.format(drop="add $4, %esp"), bits=32)
    (statement,) = (s for s in compare(*shifted.maps(None, "restore")) if s.fault)
    assert statement.kind is Kind.SHIFTED
    assert "pops its frame 4 bytes below the one the CPU pushed" in statement.text
