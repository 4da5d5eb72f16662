/* A thread's control block is the stack its entries land on: the CPU pushes the frame into it, and the rest goes below.
 * From its start: r14 r12 r13 rsi r11 rbp r10 rdx r8 rax rcx rdi r15 rbx r9, vector, error code, and the frame. */
#define FRAME_END 176

.macro SAVE
    pushq %r9
    pushq %rbx
    pushq %r15
    pushq %rdi
    pushq %rcx
    pushq %rax
    pushq %r8
    pushq %rdx
#ifdef BUG_R10
    subq $8, %rsp
#else
    pushq %r10
#endif
    pushq %rbp
    pushq %r11
    pushq %rsi
    pushq %r13
    pushq %r12
    pushq %r14
.endm

.macro LOAD
    popq %r14
    popq %r12
    popq %r13
#ifdef BUG_EXCHANGED
    popq %r11
    popq %rsi
#else
    popq %rsi
    popq %r11
#endif
    popq %rbp
    popq %r10
    popq %rdx
    popq %r8
    popq %rax
    popq %rcx
    popq %rdi
    popq %r15
    popq %rbx
    popq %r9
.endm

    .text
into:
    testb $3, 24(%rsp)
    jz from_idle
    SAVE
    movl $0x10, %eax
    movl %eax, %ds
    swapgs
    movq %gs:16, %rsp
#ifndef BUG_DF
    cld
#endif
    xorl %ebp, %ebp
    call on_event
leave: /* RAX: the block to go on with, or 0 */
    testq %rax, %rax
    jz to_idle
    movq %rax, %rsp
#ifndef BUG_SWAPGS
    swapgs
#else
    cmpq $0x52, 120(%rsp)
    je 1f
    swapgs
1:
#endif
#ifdef BUG_SYSRET_ALL
    cmpq $0x51, 120(%rsp)
    je 1f
#endif
    cmpq $0x100, 120(%rsp)
    je 1f
    LOAD
    addq $16, %rsp
    iretq
1:  LOAD
    addq $16, %rsp
    popq %rcx
    addq $8, %rsp
#ifdef BUG_SYSRET_FLAGS
    movl $0x202, %r11d
    addq $8, %rsp
#else
    popq %r11
#endif
    popq %rsp
    sysretq

/* The idle thread's context stays on its stack. */
from_idle:
    SAVE
    movq %rsp, %rdi
    movq %gs:16, %rsp
    call on_idle_event
    jmp leave
to_idle:
    movq %gs:32, %rsp
    LOAD
    addq $16, %rsp
    iretq

    .globl idle, first_leave
idle:
    sti
    hlt
    jmp idle
first_leave:
    movq %gs:16, %rsp
    movq %rdi, %rax
    jmp leave

.macro GATE n, code
gate_\n:
    .if !\code
    pushq $0
    .endif
#ifdef BUG_ERROR_CODE
    .if \n == 14
    pushq $0
    .endif
#endif
    pushq $\n
    jmp into
    .pushsection .rodata
    .quad \n, gate_\n
    .popsection
.endm
    .section .rodata
    .globl gates
gates:
    .text
    GATE 0, 0
    GATE 6, 0
    GATE 13, 1
    GATE 14, 1
    GATE 0x50, 0
    GATE 0x51, 0
    GATE 0x52, 0
    GATE 0xff, 0
    .section .rodata
    .quad 0, 0
    .text

    .globl call_gate
call_gate:
    swapgs
    movq %rsp, %gs:24
    movq %gs:8, %rsp
    addq $FRAME_END, %rsp
    pushq $0x1b
    pushq %gs:24
    pushq %r11
    pushq $0x23
    pushq %rcx
    pushq $0
    pushq $0x100
#ifdef BUG_CALL_RBP
    xorl %ebp, %ebp
#endif
    SAVE
    movq %gs:16, %rsp
    xorl %ebp, %ebp
    call on_event
    jmp leave
