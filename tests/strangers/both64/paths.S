/* Gates for 64-bit and for 32-bit user code. What a 32-bit process cannot see is not kept for it. */
#define CODE32 0x1b
    .text
/* CPU: self 0, user's RSP 8, stack 16 */
    .globl syscall_entry, compat_entry
syscall_entry:
    swapgs
    movq %rsp, %gs:8
    movq %gs:16, %rsp
    pushq $0x23
    pushq %gs:8
    pushq %r11
    pushq $0x2b
    jmp 1f
compat_entry: /* syscall in 32-bit code: RSP's upper half is nothing */
    swapgs
    movl %esp, %esp
    movq %rsp, %gs:8
    movq %gs:16, %rsp
    pushq $0x23
    pushq %gs:8
    pushq %r11
    pushq $CODE32
    movl %ecx, %ecx
1:  pushq %rcx
    pushq $0
    pushq $0x100
    call save
    movq %rsp, %rdi
    call on_call
    cli
    cmpq $CODE32, 8 * 18(%rsp)
    je 2f
    movq 8 * 17(%rsp), %rax
    movq %rax, 8 * 13(%rsp)
    movq 8 * 19(%rsp), %rax
    movq %rax, 8 * 4(%rsp)
    call load
    movq 24(%rsp), %rsp
    swapgs
    sysretq
2:  /* 32-bit code */
    movl 8 * 17(%rsp), %ecx
    movl 8 * 19(%rsp), %r11d
#ifdef BUG_FLAGS32
    andl $0x200, %r11d
#endif
    movl 8 * 9(%rsp), %edi
    movl 8 * 10(%rsp), %esi
    movl 8 * 11(%rsp), %ebx
    movl 8 * 12(%rsp), %edx
    movl 8 * 8(%rsp), %ebp
    movl 8 * 14(%rsp), %eax
#ifdef BUG_ESP32
    movq %gs:8, %rsp
#else
    movl 8 * 20(%rsp), %esp
#endif
    swapgs
    sysretl

trap: /* number, code, frame */
    testb $3, 24(%rsp)
    jz 1f
    swapgs
1:  call save
    movq %rsp, %rdi
    call on_trap
    cli
leave:
    testb $3, 8 * 18(%rsp)
    jz 3f
    cmpq $CODE32, 8 * 18(%rsp)
    je 2f
    call load
    swapgs
    iretq
3:  call load
    iretq
2:  /* what 32-bit code has, and no more; nothing of the kernel's is left in the rest */
    xorl %r8d, %r8d
    xorl %r9d, %r9d
    xorl %r10d, %r10d
    xorl %r11d, %r11d
    xorl %r12d, %r12d
    xorl %r13d, %r13d
    xorl %r14d, %r14d
    xorl %r15d, %r15d
    movl 8 * 8(%rsp), %ebp
    movl 8 * 9(%rsp), %edi
    movl 8 * 10(%rsp), %esi
    movl 8 * 11(%rsp), %ebx
    movl 8 * 12(%rsp), %edx
#ifndef BUG_ECX32
    movl 8 * 13(%rsp), %ecx
#endif
    movl 8 * 14(%rsp), %eax
    addq $8 * 17, %rsp
    swapgs
    iretq

/* Below the return address: what the frame needs to be a struct saved. */
save:
    xchgq %rax, (%rsp)
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
    jmp *%rax

load:
    popq %rax
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
    movq %rax, 16(%rsp) /* where to go on, in place of the code */
    popq %rax
    leaq 8(%rsp), %rsp /* the number */
    ret /* to it, with the frame on top */

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
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret

    .globl thread_start
thread_start:
    call began
    jmp leave

#include "../gates64.h"
    .balign 16
    pushq $0
    pushq $0x80
    jmp trap
