/* Contexts are stored where GS says, one store a register; no thread has a kernel stack, so that none is ever switched.
 * Save area: rip 0, rflags 8, cs 16, ss 24, rsp 32, r15 r14 rax rbx rcx rdx rsi rdi rbp r8 to r13 from 40, called 160. */
    .text
gate_common: /* vector, error code, frame */
    testb $3, 24(%rsp)
    jz 1f
    swapgs
    movq %rax, %gs:24
    movq %gs:8, %rax
    movq %rbx, 64(%rax)
    movq %gs:24, %rbx
    movq %rbx, 56(%rax)
    movq %r15, 40(%rax)
    movq %r14, 48(%rax)
    movq %rcx, 72(%rax)
    movq %rdx, 80(%rax)
    movq %rsi, 88(%rax)
    movq %rdi, 96(%rax)
#ifndef BUG_RBP
    movq %rbp, 104(%rax)
#endif
    movq %r8, 112(%rax)
    movq %r9, 120(%rax)
    movq %r10, 128(%rax)
#ifndef BUG_R11
    movq %r11, 136(%rax)
#endif
    movq %r12, 144(%rax)
    movq %r13, 152(%rax)
    movq $0, 160(%rax)
    movq 16(%rsp), %rbx
    movq %rbx, (%rax)
#ifndef BUG_RFLAGS
    movq 32(%rsp), %rbx
    movq %rbx, 8(%rax)
#endif
#ifdef BUG_CS
    movq 48(%rsp), %rbx
#else
    movq 24(%rsp), %rbx
#endif
    movq %rbx, 16(%rax)
    movq 40(%rsp), %rbx
    movq %rbx, 32(%rax)
    movq 48(%rsp), %rbx
    movq %rbx, 24(%rax)
    movq (%rsp), %rdi
    movq %gs:16, %rsp
    cld
    xorl %ebp, %ebp
    call on_interrupt
1:  movq (%rsp), %rdi
    movq %gs:16, %rsp
    call on_interrupt_in_idle

.macro GATE n, code
gate_\n:
    .if !\code
    pushq $0
    .endif
    pushq $\n
    jmp gate_common
    .pushsection .rodata
    .quad \n, gate_\n
    .popsection
.endm
    .section .rodata
    .globl gates
gates:
    .text
    GATE 6, 0
    GATE 13, 1
    GATE 14, 1
    GATE 0x50, 0
    GATE 0x51, 0
    GATE 0xff, 0
    .section .rodata
    .quad 0, 0
    .text

    .globl call_gate
call_gate:
    swapgs
    movq %rsp, %gs:24
    movq %gs:8, %rsp
    movq %rcx, (%rsp)
    movq %r11, 8(%rsp)
    movq $0x23, 16(%rsp)
    movq $0x1b, 24(%rsp)
    movq %rax, 56(%rsp)
    movq %rbx, 64(%rsp)
    movq %gs:24, %rbx
    movq %rbx, 32(%rsp)
    movq %r15, 40(%rsp)
    movq %r14, 48(%rsp)
    movq %rdx, 80(%rsp)
    movq %rsi, 88(%rsp)
    movq %rdi, 96(%rsp)
    movq %rbp, 104(%rsp)
    movq %r8, 112(%rsp)
    movq %r9, 120(%rsp)
    movq %r10, 128(%rsp)
#ifndef BUG_CALL_R12
    movq %r12, 144(%rsp)
#endif
    movq %r13, 152(%rsp)
    movq $1, 160(%rsp)
    movq %gs:16, %rsp
    xorl %ebp, %ebp
    call on_call

    /* resume(area): interrupts are off */
    .globl resume
resume:
    cmpq $0, 160(%rdi)
    jne 1f
    pushq 24(%rdi)
    pushq 32(%rdi)
    pushq 8(%rdi)
    pushq 16(%rdi)
    pushq (%rdi)
    movq 72(%rdi), %rcx
    movq 136(%rdi), %r11
    call restore
    swapgs
    iretq
1:  movq (%rdi), %rcx
    movq 8(%rdi), %r11
    movq 32(%rdi), %rax
    movq %rax, %gs:24
    call restore
    movq %gs:24, %rsp
    swapgs
    sysretq
restore:
    movq 40(%rdi), %r15
    movq 48(%rdi), %r14
    movq 56(%rdi), %rax
    movq 64(%rdi), %rbx
    movq 80(%rdi), %rdx
    movq 88(%rdi), %rsi
    movq 104(%rdi), %rbp
    movq 112(%rdi), %r8
    movq 120(%rdi), %r9
    movq 128(%rdi), %r10
    movq 144(%rdi), %r12
    movq 152(%rdi), %r13
    movq 96(%rdi), %rdi
    retq
