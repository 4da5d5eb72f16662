/* User code is called like a function: run_user() returns when it traps. */
    .text
/* Words of a context: r15 r14 r13 r12 r11 r10 r9 r8 rbp rdi rsi rbx rdx rcx rax 14; number 15, error 16, rip 17 cs 18
 * rflags 19 rsp 20 ss 21, fs 22, gs 23. The CPU, by GS: self 0, kernel's RSP 8, context 16, scratch 24, thread 32 */
    .globl run_user
run_user: /* RDI: the context */
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cli
    movq %rsp, %gs:8
    movq %rdi, %gs:16
    rdfsbase %rax
    pushq %rax /* the kernel thread's */
    movq 8 * 22(%rdi), %rax
    wrfsbase %rax
    movq 8 * 23(%rdi), %rax
    swapgs
    wrgsbase %rax
#ifdef BUG_SYSRET_ALL
    jmp 1f
#endif
    cmpl $0x100, 8 * 15(%rdi)
    je 1f
    leaq 8 * 17(%rdi), %rsp
    movq %rdi, %rax
    call load
    movq 8 * 14(%rax), %rax
    iretq
1:  movq %rdi, %rax
    call load
    movq 8 * 17(%rax), %rcx
    movq 8 * 19(%rax), %r11
#ifdef BUG_SYSRET_FLAGS
    movl $0x202, %r11d
#endif
    movq 8 * 20(%rax), %rsp
    movq 8 * 14(%rax), %rax
    sysretq

/* RAX: the context, all but RAX; a page's worth below it may be written. */
load:
    movq 8 * 0(%rax), %r15
    movq 8 * 1(%rax), %r14
    movq 8 * 2(%rax), %r13
    movq 8 * 3(%rax), %r12
    movq 8 * 4(%rax), %r11
    movq 8 * 5(%rax), %r10
    movq 8 * 6(%rax), %r9
    movq 8 * 7(%rax), %r8
    movq 8 * 8(%rax), %rbp
    movq 8 * 9(%rax), %rdi
    movq 8 * 10(%rax), %rsi
    movq 8 * 11(%rax), %rbx
    movq 8 * 12(%rax), %rdx
    movq 8 * 13(%rax), %rcx
    ret

/* RAX: the context, its own RAX stored; on any stack. */
store:
    movq %r15, 8 * 0(%rax)
    movq %r14, 8 * 1(%rax)
    movq %r13, 8 * 2(%rax)
    movq %r12, 8 * 3(%rax)
    movq %r11, 8 * 4(%rax)
#ifndef BUG_R10
    movq %r10, 8 * 5(%rax)
#endif
    movq %r9, 8 * 6(%rax)
    movq %r8, 8 * 7(%rax)
    movq %rbp, 8 * 8(%rax)
    movq %rdi, 8 * 9(%rax)
    movq %rsi, 8 * 10(%rax)
    movq %rbx, 8 * 11(%rax)
    movq %rdx, 8 * 12(%rax)
    movq %rcx, 8 * 13(%rax)
    rdfsbase %rcx
#ifndef BUG_FS
    movq %rcx, 8 * 22(%rax)
#endif
    swapgs
    rdgsbase %rcx
    swapgs
#ifdef BUG_GS
    testb $1, %al
    jz 1f
#endif
    movq %rcx, 8 * 23(%rax)
1:  ret

    .globl syscall_entry
syscall_entry:
    swapgs
    movq %rax, %gs:24
    movq %gs:16, %rax
    movq %rsp, 8 * 20(%rax)
    movq %gs:8, %rsp
    subq $8, %rsp
    movq %rcx, 8 * 17(%rax)
    movq %r11, 8 * 19(%rax)
    movl $0x100, 8 * 15(%rax)
    call store
    movq %gs:24, %rcx
    movq %rcx, 8 * 14(%rax)
back:
    cld
    movq 8 * 15(%rax), %rax
    movq %gs:8, %rsp
    movq -8(%rsp), %rcx
#ifndef BUG_KERNEL_FS
    wrfsbase %rcx
#endif
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret /* from run_user */

trap: /* number, error code, frame */
    testb $3, 24(%rsp)
    jz 1f
    swapgs
    movq %rax, %gs:24
    movq %gs:16, %rax
    popq 8 * 15(%rax)
    popq 8 * 16(%rax)
    popq 8 * 17(%rax)
    popq 8 * 18(%rax)
    popq 8 * 19(%rax)
    popq 8 * 20(%rax)
    popq 8 * 21(%rax)
    call store
    movq %gs:24, %rcx
    movq %rcx, 8 * 14(%rax)
    jmp back

1:  /* the kernel itself was interrupted: nothing but what C does not keep */
#ifdef BUG_NESTED_SWAP
    swapgs
#endif
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    movq 72(%rsp), %rdi
    movq 80(%rsp), %rsi
    subq $8, %rsp
    cld
    call on_kernel_trap
    addq $8, %rsp
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
#ifdef BUG_NESTED_RSI
    popq %rdx
    popq %rsi
#else
    popq %rsi
    popq %rdx
#endif
    popq %rcx
    popq %rax
    addq $16, %rsp
#ifdef BUG_NESTED_SWAP
    swapgs
#endif
    iretq

/* swtch(u64 *from, u64 to) */
    .globl swtch
swtch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    rdfsbase %rax
    pushq %rax
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %rax
    wrfsbase %rax
    popq %r15
    popq %r14
#ifdef BUG_SWITCH_R13
    popq %rcx
#else
    popq %r13
#endif
    popq %r12
    popq %rbx
    popq %rbp
    ret

#include "../gates64.h"
