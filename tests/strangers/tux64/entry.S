/* Entries after the manner of Linux: trampoline stacks, struct pt_regs, paranoid entries that look at GS. */
#define SELF %gs:0
#define SCRATCH %gs:8
#define TOP %gs:16
#define TRAMPOLINE %gs:32
#define STATE %gs:56

.macro PUSH_REGS rax=%rax
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq \rax
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    xorl %ebp, %ebp
    cld
.endm

.macro POP_ALL_BUT_RDI
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rax
    popq %rcx
    popq %rdx
    popq %rsi
.endm

    .text
.macro ENTRY_POINT n, code
    .balign 16
entry_\n:
    .if !\code
    pushq $-1
    .endif
    testb $3, 16(%rsp)
    jz 1f
    swapgs
    call leave_trampoline
1:  PUSH_REGS
    movq %rsp, %rdi
    movl $\n, %esi
    call handle
    jmp interrupt_return
    .pushsection .rodata
    .quad \n, entry_\n
    .popsection
.endm

    .section .rodata
    .globl entries
entries:
    .text
    ENTRY_POINT 0, 0
    ENTRY_POINT 3, 0
    ENTRY_POINT 6, 0
    ENTRY_POINT 14, 1
    ENTRY_POINT 0x40, 0
    ENTRY_POINT 0x41, 0
    ENTRY_POINT 0xff, 0
    .section .rodata
    .quad 13, entry_fault, 1, entry_debug, 2, entry_nmi, 0, 0
    .text

    /* From the CPU's entry stack to the thread's: return address, error code, frame. */
leave_trampoline:
    pushq %rdi
    movq %rsp, %rdi
    movq TOP, %rsp
    pushq 56(%rdi)
#ifdef BUG_COPY_RSP
    pushq %rdi
#else
    pushq 48(%rdi)
#endif
    pushq 40(%rdi)
    pushq 32(%rdi)
    pushq 24(%rdi)
    pushq 16(%rdi)
    pushq 8(%rdi)
    movq (%rdi), %rdi
    movl $0, STATE
    retq

    /* #GP: may be an iret to user code that was not possible; its frame lies where RSP was. */
entry_fault:
    testb $3, 16(%rsp)
    jnz 1f
    pushq %rax
    leaq the_iret(%rip), %rax
    cmpq %rax, 16(%rsp)
    popq %rax
    jne 2f
#ifndef BUG_BAD_IRET
    swapgs
#endif
    pushq %rdi
    movq 40(%rsp), %rdi
    movq TOP, %rsp
    pushq 32(%rdi)
    pushq 24(%rdi)
    pushq 16(%rdi)
    pushq 8(%rdi)
    pushq (%rdi)
    pushq $-1
    movl $0, STATE
    PUSH_REGS
    movq %rsp, %rdi
    movl $13, %esi
    call handle
    jmp interrupt_return
1:  swapgs
    call leave_trampoline
2:  PUSH_REGS
    movq %rsp, %rdi
    movl $13, %esi
    call handle

    .globl interrupt_return
interrupt_return:
    testb $3, 136(%rsp)
    jnz return_to_user
    POP_ALL_BUT_RDI
    popq %rdi
    addq $8, %rsp
    iretq

return_to_user:
    cli
    movl $1, STATE
    POP_ALL_BUT_RDI
    movq %rsp, %rdi
    movq TRAMPOLINE, %rsp
    pushq 48(%rdi)
    pushq 40(%rdi)
    pushq 32(%rdi)
    pushq 24(%rdi)
    pushq 16(%rdi)
    pushq (%rdi)
    popq %rdi
#ifdef BUG_SWAP_AND_GO
    swapgs
    sti
    nop
#else
    swapgs
#endif
    .globl the_iret
the_iret:
    iretq

    .globl entry_call
entry_call:
    swapgs
    movq %rsp, SCRATCH
    movq TOP, %rsp
    pushq $0x1b
    pushq SCRATCH
    pushq %r11
    pushq $0x23
    pushq %rcx
    pushq %rax
    movl $0, STATE
    PUSH_REGS $-38
    movq %rsp, %rdi
    call system_call
    .globl return_from_call
return_from_call:
    testl %eax, %eax
    jz return_to_user
    cli
    movl $1, STATE
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
#ifdef BUG_R11
    popq %rcx
#else
    popq %r11
#endif
    popq %r10
    popq %r9
#ifdef BUG_CALL_R8
    popq %rax
#else
    popq %r8
#endif
    popq %rax
    popq %rcx
    popq %rdx
    popq %rsi
    movq %rsp, %rdi
    movq TRAMPOLINE, %rsp
    pushq 40(%rdi)
    pushq (%rdi)
    popq %rdi
    popq %rsp
    swapgs
    .globl the_sysret
the_sysret:
    sysretq

.macro PARANOID name, n
    .balign 16
\name:
    pushq $-1
    PUSH_REGS
#if defined BUG_BY_CS
    xorl %ebx, %ebx
    testb $3, 136(%rsp)
    jz 1f
#else
    movl $0xc0000101, %ecx
    rdmsr
    xorl %ebx, %ebx
    testl %edx, %edx
    js 1f
#endif
    swapgs
    movl $1, %ebx
1:  movq %rsp, %rdi
    movl $\n, %esi
    call handle_paranoid
    testl %ebx, %ebx
    jz 2f
    swapgs
2:  POP_ALL_BUT_RDI
    popq %rdi
#ifdef BUG_PARANOID_CODE
    iretq
#endif
    addq $8, %rsp
    iretq
.endm
    PARANOID entry_debug, 1
    PARANOID entry_nmi, 2

    /* struct task *switch_to(from, to): RDI's stack to RSI's. */
    .globl switch_to, began
switch_to:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
#ifdef BUG_SWITCH_R12
    addq $8, %rsp
#else
    popq %r12
#endif
    popq %rbx
    popq %rbp
    jmp finish_switch
    /* A new thread: RBX is what it runs in the kernel, 0 for user code. */
began:
    testq %rbx, %rbx
    jz 1f
    movq %r12, %rdi
    sti
    call *%rbx
1:  xorl %eax, %eax
    jmp return_from_call

    /* void on_interrupt_stack(fn, argument, top) */
    .globl on_interrupt_stack
on_interrupt_stack:
    movq %rsp, -8(%rdx)
    leaq -8(%rdx), %rsp
    movq %rdi, %rax
    movq %rsi, %rdi
    call *%rax
    popq %rsp
    retq

    /* u64 load_user(u64 address): ~0 if there is nothing. */
    .globl load_user, load_user_at, load_user_fixup
load_user:
load_user_at:
    movq (%rdi), %rax
    retq
load_user_fixup:
    movq $-1, %rax
    retq

    /* An iret to itself: the way to be sure that no stale code is run. */
    .globl serialize
serialize:
    movl %ss, %eax
    pushq %rax
    pushq %rsp
    addq $8, (%rsp)
    pushfq
    movl %cs, %eax
    pushq %rax
    leaq 1f(%rip), %rax
    pushq %rax
    iretq
1:  retq
