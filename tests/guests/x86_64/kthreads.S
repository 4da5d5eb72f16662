/* Kernel threads: the same self-check as the user programs', at CPL 0; and the idle loop. */
#include "pattern.h"

#define TURNS 2000000

.macro KTHREAD name
        .text
        .globl \name\()_main
        .type \name\()_main, @function
\name\()_main:
        movq %rdi, \name\()_want+WANT_SEED(%rip)
        movq %rsp, \name\()_want+WANT_STACK(%rip)
\name\()_again:
#ifdef BUG_STACK_OVERFLOW_NEIGHBOUR
        movl $22, %edi
        call sum_below
#endif
#ifdef BUG_RED_ZONE
        movq \name\()_want+WANT_ROUND(%rip), %rdi
        call leaf_sum
        pushq $CORRUPT_RESULT
        testq %rax, %rax
        jnz \name\()_failed
        popq %rax
#endif
        .rept 2
        PATTERN_RUN \name\()_want, TURNS, \name\()_failed
        .endr
        PATTERN_MAKE \name\()_want
        PATTERN_LOAD \name\()_want
        movl $2, %edi
        call kthread_sleep                      /* RSP is 8 off a multiple of 16 here; no matter */
        PATTERN_CHECK_PRESERVED \name\()_want, \name\()_switch_failed
        jmp \name\()_again
\name\()_failed:
        movl $WHERE_COMPUTING, %esi
        jmp 1f
\name\()_switch_failed:
        movl $WHERE_SYSCALL, %esi
1:      popq %rdi
        cld
        call report_corrupt
        movq \name\()_want+WANT_STACK(%rip), %rsp
        jmp \name\()_again
        .size \name\()_main, . - \name\()_main

        .bss
        .balign 16
\name\()_want: .skip WANT_SIZE
.endm

        KTHREAD kthread0
        KTHREAD kthread1

        .text
        .globl idle_loop
        .type idle_loop, @function
idle_loop:
#ifdef BUG_SEL4_IDLE
        /* BUG: what a compiler makes of C code if it does not leave out the prologue. There is no stack here. */
        pushq %rbp
        movq %rsp, %rbp
#endif
1:      sti
        hlt
        jmp 1b
        .size idle_loop, . - idle_loop

#ifdef BUG_STACK_OVERFLOW_NEIGHBOUR
/* u64 sum_below(u64 n) -- BUG: 16 bytes for each level of recursion, and the stack has 256 */
        .globl sum_below
        .type sum_below, @function
sum_below:
        xorl %eax, %eax
        pushq %rdi
        decq %rdi
        jz 1f
        call sum_below
1:      popq %rdi
        addq %rdi, %rax
        ret
        .size sum_below, . - sum_below
#endif
