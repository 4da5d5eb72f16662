/* Kernel threads: the same self-check as the user programs', at CPL 0. */
#include "pattern.h"

#define TURNS 2000000

.macro KTHREAD name
        .text
        .globl \name\()_main
        .type \name\()_main, @function
\name\()_main:
        movl %eax, \name\()_want+WANT_SEED
        movl $KERNEL_SS, \name\()_want+WANT_DS
        movl $KERNEL_SS, \name\()_want+WANT_ES
        pushl $\name\()_want
        call \name\()_check                     /* not to return */
        .size \name\()_main, . - \name\()_main

        .type \name\()_check, @function
\name\()_check:
        movl %esp, \name\()_want+WANT_STACK
\name\()_again:
        .rept 2
        PATTERN_RUN \name\()_want, TURNS, \name\()_failed
        .endr
        PATTERN_MAKE \name\()_want
        PATTERN_LOAD \name\()_want
        pushl $2
        call kthread_sleep
        popl %eax
        PATTERN_CHECK_PRESERVED \name\()_want, \name\()_switch_failed
        jmp \name\()_again
\name\()_failed:
        pushl $WHERE_COMPUTING
        jmp 1f
\name\()_switch_failed:
        pushl $WHERE_SYSCALL
1:      cld
        pushl 4(%esp)
        call report_corrupt                     /* its third argument it does not look at */
        movl \name\()_want+WANT_STACK, %esp
        jmp \name\()_again
        .size \name\()_check, . - \name\()_check

        .bss
        .balign 16
\name\()_want: .skip WANT_SIZE
.endm

        KTHREAD kthread0
        KTHREAD kthread1
