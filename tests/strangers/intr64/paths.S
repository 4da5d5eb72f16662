/* From RSP: swapped 0, r15 r14 r13 r12 r11 r10 r9 r8 rbp rdi rsi rbx rdx rcx rax 120, number 128, code 136, frame 144. */
    .text
.macro SAVE
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
#ifdef BUG_R11
    subq $8, %rsp
#else
    pushq %r11
#endif
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
.endm
.macro RESTORE
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
.endm

/* The CPU, by GS: self 0, stack 8, scratch 16 */
    .globl syscall_entry
syscall_entry:
    swapgs
    movq %rsp, %gs:16
    movq %gs:8, %rsp
    pushq $0x1b
    pushq %gs:16
    pushq %r11
    pushq $0x23
    pushq %rcx
    pushq $0
    pushq $0x100
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq $1
    movq %rsp, %rdi
    call system_call
    cli
    addq $8, %rsp
    RESTORE
    movq 16(%rsp), %rcx
#ifdef BUG_CALL_FLAGS
    movl $0x202, %r11d
#else
    movq 32(%rsp), %r11
#endif
    movq 40(%rsp), %rsp
    swapgs
    sysretq

trap: /* number, code, frame: whose GS it is tells GS, not CS */
    SAVE
    xorl %ebx, %ebx
    movl $0xc0000101, %ecx
    rdmsr
    testl %edx, %edx
    js 1f
    swapgs
    incl %ebx
1:  pushq %rbx
    cld
    movq %rsp, %rdi
    call on_trap
#ifdef BUG_PARITY
    testb $3, 144(%rsp)
#else
    cmpb $0, (%rsp)
#endif
    jz 2f
    swapgs
2:  addq $8, %rsp
#ifdef BUG_FLAG_RBX
    movq %rbx, 88(%rsp)
#endif
    RESTORE
    addq $16, %rsp
    iretq

    .globl thread_start
thread_start:
    movq %rbx, %rdi
    call began
    movq %rax, %rsp
    swapgs
    addq $8, %rsp
    RESTORE
    addq $16, %rsp
    iretq

.macro KEEP
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
.endm
/* swtch(u64 *from, u64 to) */
    .globl swtch
swtch:
    KEEP
    movq %rsp, (%rdi)
go_on:
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
#ifdef BUG_SWITCH_RBP
    popq %rcx
#else
    popq %rbp
#endif
    ret

/* on_top(u64 *from, u64 stack, void (*f)(void)): f on another stack; from there on `from` is where swtch finds us. */
    .globl on_top
on_top:
    KEEP
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    xorl %ebp, %ebp
    call *%rdx
    ud2

/* below(u64 to): the interrupt is over, and he whom it interrupted is still there */
    .globl below
below:
    movq %rdi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
#ifdef BUG_BELOW_RBP
    popq %rcx
#else
    popq %rbp
#endif
    ret

#include "../gates64.h"
