/* What gcc cannot make: the system call, the switch, the change of stacks. */
    .text
/* leave_for(&old, new): an iret frame to where the caller goes on, the callee-saved registers below it; then the other's. */
    .globl leave_for
leave_for:
    popq %rdx
    movq %rsp, %rax
    pushq $0x10
    pushq %rax
    pushfq
    pushq $8
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
#ifdef BUG_LEAVE_R13
    addq $8, %rsp
#else
    popq %r13
#endif
    popq %r12
#ifdef BUG_LEAVE_EXCHANGED
    popq %rbx
    popq %rbp
#else
    popq %rbp
    popq %rbx
#endif
#ifdef BUG_LEAVE_RSP
    addq $8, 24(%rsp)
#endif
    iretq

/* A new thread: its argument, then its frame. */
    .globl thread_start
thread_start:
    call began
    popq %rdi
    testb $3, 8(%rsp)
    jz 1f
    swapgs
1:  iretq

/* on_irq_stack(fn): on the CPU's interrupt stack, interrupts on; where it is in use already, on top of it. */
    .globl on_irq_stack
on_irq_stack:
    pushq %rbp
    movq %rsp, %rbp
#ifdef BUG_IRQ_STACK
    movq %gs:40, %rsp
    incq %gs:32
#else
    incq %gs:32
    cmpq $1, %gs:32
    jne 1f
    movq %gs:40, %rsp
1:
#endif
    pushq %rbp
    andq $-16, %rsp
    sti
    call *%rdi
    cli
    decq %gs:32
#ifdef BUG_IRQ_STACK
    cmpq $0, %gs:32
    jne 2f
    movq %gs:40, %rsp
    movq -8(%rsp), %rbp
2:
#endif
    movq %rbp, %rsp
    popq %rbp
    retq

/* peek(address): ~0 where there is none. */
    .globl peek, peek_at, peek_failed
peek:
peek_at:
    movq (%rdi), %rax
    retq
peek_failed:
    movq $-1, %rax
    retq

    .globl call_entry
call_entry:
    swapgs
    movq %rsp, %gs:8
    movq %gs:16, %rsp
    pushq %gs:8
    pushq %r11
    pushq %rcx
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %rax
    movq %rax, %rcx
    sti
    call on_call
    cli
    addq $8, %rsp
    popq %r10
#ifdef BUG_CALL_R9
    popq %rcx
#else
    popq %r9
#endif
    popq %r8
    popq %rdx
    popq %rsi
    popq %rdi
    popq %rcx
#ifdef BUG_CALL_FLAGS
    movl $0x202, %r11d
    addq $8, %rsp
#else
    popq %r11
#endif
#ifdef BUG_CALL_RSP
    movq (%rsp), %rsp
    addq $8, %rsp
#else
    popq %rsp
#endif
    swapgs
    sysretq
