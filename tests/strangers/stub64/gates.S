/* No swapgs: GS is saved and written like a register. Each CPU has a system call stub of its own, which knows its data by
 * address. Words from RSP: gs r15 r14 r13 r12 r11 r10 r9 r8 rdi rsi rbp rbx rdx rcx rax, vector, code, frame. */
.macro SAVE
    pushq %rax
    pushq %rcx
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
    rdgsbase %rax
    pushq %rax
    movq %rsp, %rdi /* the thread lies at the bottom of its stack */
    andq $-8192, %rdi
    movq (%rdi), %rax
    wrgsbase %rax
    movq %rsp, %rdi
    cld
.endm

.macro LOAD
    popq %rax
#ifndef BUG_NESTED_GS
    testb $3, 16 * 8 + 16(%rsp) /* what was interrupted in the kernel goes on with the base of the CPU it goes on */
    jz 2f
#endif
#ifndef BUG_GS
    wrgsbase %rax
#endif
2:
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
#ifdef BUG_RSI
    addq $8, %rsp
#else
    popq %rsi
#endif
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
.endm

    .text
all:
    SAVE
    call on_trap
    .globl leave
leave:
    LOAD
    addq $16, %rsp
    iretq

.macro GATE n, code
gate_\n:
    .if !\code
    pushq $0
    .endif
    pushq $\n
    jmp all
    .pushsection .rodata
    .quad \n, gate_\n
    .popsection
.endm
    .section .rodata
    .globl gates
gates:
    .text
    GATE 3, 0
    GATE 6, 0
    GATE 13, 1
    GATE 14, 1
    GATE 0x50, 0
    GATE 0x51, 0
    GATE 0xff, 0
    .section .rodata
    .quad 0, 0
    .text

.macro STUB n
    .globl call_stub_\n
call_stub_\n:
    movq %rsp, call_scratch + 64 * \n(%rip)
    movq call_stack + 64 * \n(%rip), %rsp
    pushq $0x1b
    pushq call_scratch + 64 * \n(%rip)
    jmp call_common
.endm
    STUB 0
    STUB 1
    STUB 2

call_common:
    pushq %r11
    pushq $0x23
    pushq %rcx
    pushq $0
    pushq $0x100
    SAVE
#ifdef BUG_CALL_R15
    movq %rdi, %r15
#endif
    sti
    call on_call
    cli
#ifdef BUG_CALL_R15
    movq %r15, 8(%rsp)
#endif
    LOAD
    addq $16, %rsp
    popq %rcx
    addq $8, %rsp
#ifdef BUG_SYSRET_FLAGS
    pushfq
    popq %r11
    orq $0x200, %r11
    addq $8, %rsp
#else
    popq %r11
#endif
    movq (%rsp), %rsp
    sysretq

/* save(ctx): 0, and 1 when restore(ctx) takes it up. In order: return address, rsp, rbx rbp r12 r13 r14 r15 */
    .globl save, restore
save:
    movq (%rsp), %rax
    movq %rax, (%rdi)
    leaq 8(%rsp), %rax
    movq %rax, 8(%rdi)
    movq %rbx, 16(%rdi)
    movq %rbp, 24(%rdi)
    movq %r12, 32(%rdi)
    movq %r13, 40(%rdi)
    movq %r14, 48(%rdi)
    movq %r15, 56(%rdi)
    xorl %eax, %eax
    ret
restore:
#ifndef BUG_RESTORE_RBX
    movq 16(%rdi), %rbx
#endif
    movq 24(%rdi), %rbp
    movq 32(%rdi), %r12
    movq 40(%rdi), %r13
    movq 48(%rdi), %r14
    movq 56(%rdi), %r15
    movq 8(%rdi), %rsp
    movl $1, %eax
    jmp *(%rdi)

    .globl to_user
to_user:
    jmp leave

    .data
    .balign 64
    .globl call_scratch, call_stack
call_scratch: .space 256
call_stack: .space 256
