/* Words from RSP: r15 r14 r13 r12 r11 r10 r9 r8 rbp rdi rsi rbx rdx rcx rax, number, code, frame. */
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
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
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
/* The CPU, by GS: self 0, stack 8, user's RSP 16 */
    .globl syscall_entry
syscall_entry:
    swapgs
    movq %rsp, %gs:16
    movq %gs:8, %rsp
    pushq $0x1b
#ifdef BUG_SCRATCH
    pushq $0
#else
    pushq %gs:16
#endif
    pushq %r11
    pushq $0x23
    pushq %rcx
    pushq $0
    pushq $0x100
    SAVE
    movq %rsp, %rdi
    call system_call
    .globl call_return
call_return:
    cli
    movq %rsp, %rdi
    call leave
    testl %eax, %eax
    jz to_user
#ifdef BUG_CALL_RBX
    movq 8 * 12(%rsp), %rax
    movq %rax, 8 * 11(%rsp)
#endif
    RESTORE
    movq 16(%rsp), %rcx
    movq 32(%rsp), %r11
#ifdef BUG_SCRATCH
    movq %gs:16, %rsp
#else
    movq 40(%rsp), %rsp
#endif
    swapgs
    sysretq

to_user:
    RESTORE
    addq $16, %rsp
    swapgs
    .globl the_iret
the_iret:
    iretq

trap: /* number, code, frame */
#ifdef BUG_NESTED
    testb $3, 16(%rsp)
#else
    testb $3, 24(%rsp)
#endif
    jz 1f
    swapgs
1:  SAVE
#ifdef BUG_STUB_R9
    cmpl $0x40, 8 * 15(%rsp)
    jne 2f
    movl $0x40, %r9d
    movq %r9, 8 * 6(%rsp)
2:
#endif
    movq %rsp, %rdi
    call on_trap
    testb $3, 8 * 18(%rsp)
    jz 3f
    cli
    movq %rsp, %rdi
    call leave
#ifdef BUG_SYSRET_ALWAYS
    jmp fast
#endif
    jmp to_user
3:  RESTORE
    addq $16, %rsp
    iretq
#ifdef BUG_SYSRET_ALWAYS
fast:
    RESTORE
    movq 16(%rsp), %rcx
    movq 32(%rsp), %r11
    movq 40(%rsp), %rsp
    swapgs
    sysretq
#endif

    .globl process_start
process_start: /* a child's first steps: RBX is where to go before user mode */
    movq %rbx, %rdi
    call began
    jmp call_return

/* swtch(u64 *from, u64 to) */
    .globl swtch
swtch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
#ifdef BUG_SWITCH_R14
    popq %rcx
#else
    popq %r14
#endif
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret

#include "../gates64.h"
