/* Every handler runs on the stack of the task it interrupts, but for those on stacks of their own (IST). */
    .text
.macro PUSH_SCRATCH
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
.endm
.macro POP_SCRATCH
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
.endm

/* The tick: what the compiler does not preserve, addressed by RBP. */
    .globl tick_gate
tick_gate:
    enter $80, $0
    movq %rax, -8(%rbp)
    movq %rcx, -16(%rbp)
    movq %rdx, -24(%rbp)
    movq %rsi, -32(%rbp)
    movq %rdi, -40(%rbp)
    movq %r8, -48(%rbp)
#ifndef BUG_TICK_R9
    movq %r9, -56(%rbp)
#endif
    movq %r10, -64(%rbp)
    movq %r11, -72(%rbp)
#ifndef BUG_DF
    cld
#endif
    call on_tick
    movq -8(%rbp), %rax
    movq -16(%rbp), %rcx
    movq -24(%rbp), %rdx
#ifdef BUG_TICK_EXCHANGED
    movq -40(%rbp), %rsi
    movq -32(%rbp), %rdi
#else
    movq -32(%rbp), %rsi
    movq -40(%rbp), %rdi
#endif
    movq -48(%rbp), %r8
    movq -56(%rbp), %r9
    movq -64(%rbp), %r10
    movq -72(%rbp), %r11
    leave
    iretq

/* A slow device: its handler lets the tick in, which may well switch tasks. */
    .globl device_gate
device_gate:
    cld
    PUSH_SCRATCH
#ifdef BUG_DEVICE_FRAME
    movq %rsp, device_frame(%rip)
#endif
    sti
    call on_device
    cli
#ifdef BUG_DEVICE_FRAME
    movq device_frame(%rip), %rsp
#endif
#ifdef BUG_DEVICE_RDX
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    addq $8, %rsp
    popq %rcx
    popq %rax
#else
    POP_SCRATCH
#endif
    iretq

    .globl quick_gate
quick_gate:
    cld
    PUSH_SCRATCH
    call on_quick
    POP_SCRATCH
    iretq

    .globl nmi_gate
nmi_gate:
    cld
    PUSH_SCRATCH
#ifdef BUG_NMI_IF
    orq $0x200, 88(%rsp)
#endif
    call on_nmi
    POP_SCRATCH
    iretq

/* yield by int 81h: a result in RAX. */
    .globl yield_gate
yield_gate:
    cld
    PUSH_SCRATCH
    call on_yield
    movq %rax, 64(%rsp)
#ifdef BUG_YIELD_R8
    movq %rax, 24(%rsp)
#endif
    POP_SCRATCH
    iretq

/* Faults: number, error code and all registers, by a pointer in RDI. */
.macro FAULT name, n, code
    .globl \name
\name:
    .if !\code
    pushq $0
    .endif
    xchgq %rax, (%rsp) /* RAX to the stack, the error code to RAX */
    pushq %rcx
    movl $\n, %ecx
    jmp fault
.endm
    FAULT divide_gate, 0, 0
#ifdef BUG_BREAK_CODE
    FAULT break_gate, 3, 1
#else
    FAULT break_gate, 3, 0
#endif
    FAULT undefined_gate, 6, 0
    FAULT no_fpu_gate, 7, 0
    FAULT page_gate, 14, 1
    FAULT protection_gate, 13, 1
fault: /* RAX: code, RCX: number; RCX and RAX on the stack */
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rdi
    movq %rcx, %rsi
    movq %rax, %rdx
    cld
    call on_fault
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    iretq

/* swap(&old->sp, new->sp): by exchange, and back by a jump to what was left on top. */
    .globl swap
swap:
    pushfq
    cli
#ifdef BUG_SWAP_R15
    subq $8, %rsp
#else
    pushq %r15
#endif
    pushq %r14
    pushq %r13
    pushq %r12
    pushq %rbx
    pushq %rbp
    xchgq %rsp, %rsi
    movq %rsi, (%rdi)
    popq %rbp
    popq %rbx
    popq %r12
    popq %r13
    popq %r14
#ifdef BUG_SWAP_R15
    addq $8, %rsp
#else
    popq %r15
#endif
    popfq
    popq %rcx
    jmp *%rcx

    .globl task_start
task_start:
    movq %rbx, %rdi
    sti
    callq *%rbp
    ud2

/* peek(address, &ok): reads where perhaps nothing is. */
    .globl peek, peek_at, peek_fixup
peek:
    pushq %rbx
    movl $1, %ebx
peek_at:
    movq (%rdi), %rax
1:  movl %ebx, (%rsi)
    popq %rbx
    ret
peek_fixup:
    xorl %ebx, %ebx
    xorl %eax, %eax
    jmp 1b

    .data
device_frame: .quad 0
