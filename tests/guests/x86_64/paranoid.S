/*
 * NMI, #DB and #DF come on stacks of their own (IST) and may interrupt anything, also code between a
 * change of privilege and its SWAPGS. So they do not ask CS which GS base is active but look at it:
 * kernel addresses are negative. Where programs can load any base themselves (FSGSBASE), that proves
 * nothing; the base is then replaced, by the one that lies at the top of the IST stack, and put back.
 */
#include "layout.h"

        .text
        .globl nmi_entry
        .type nmi_entry, @function
nmi_entry:
        pushq $0
        pushq $VECTOR_NMI
        jmp paranoid_entry
        .size nmi_entry, . - nmi_entry

        .globl debug_entry
        .type debug_entry, @function
debug_entry:
        pushq $0
        pushq $VECTOR_DEBUG
        jmp paranoid_entry
        .size debug_entry, . - debug_entry

        .type paranoid_entry, @function
paranoid_entry:
        pushq %rax
        pushq %rbx
        pushq %rcx
        pushq %rdx
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
#ifdef FSGSBASE
        rdgsbase %rbx
        movq 22*8(%rsp), %rax                   /* see cpu_init */
        wrgsbase %rax
#else
        xorl %ebx, %ebx                         /* RBX: 1 = swapped here, swap back */
#ifdef BUG_NMI_IN_WINDOW /* BUG: CS does not tell whose GS base is active */
        testb $3, 18*8(%rsp)
        jz 1f
#else
        movl $MSR_GS_BASE, %ecx
        rdmsr
        testl %edx, %edx
        js 1f
#endif
        SWAPGS
        incl %ebx
1:
#endif
        movq 15*8(%rsp), %rdi                   /* vector */
        call handle_paranoid                    /* 22 words are on the stack: it is aligned */
#ifdef FSGSBASE
        wrgsbase %rbx
#else
        testl %ebx, %ebx
        jz 2f
        SWAPGS
2:
#endif
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
        popq %rdx
        popq %rcx
        popq %rbx
        popq %rax
        addq $16, %rsp
        iretq
        .size paranoid_entry, . - paranoid_entry

#ifdef BUG_IST_REUSED
        .globl breakpoint_entry
        .type breakpoint_entry, @function
breakpoint_entry:
        pushq $0
        pushq $VECTOR_BREAKPOINT
        jmp paranoid_entry
        .size breakpoint_entry, . - breakpoint_entry
#endif

/* There is no way back from a double fault. */
        .globl double_fault_entry
        .type double_fault_entry, @function
double_fault_entry:
        cld
        movq 8(%rsp), %rdi                      /* RIP, above the error code */
        movq 32(%rsp), %rsi                     /* RSP */
        call handle_double_fault
        ud2
        .size double_fault_entry, . - double_fault_entry
