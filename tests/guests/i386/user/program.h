/* What the user programs share. Each process has its own copy of the data. */
#include "pattern.h"

#define TURNS_PER_MS 400000 /* of LOOP, very roughly, under TCG */

/*
 * Start of a program: EAX is the process's number, and decides on the selectors it uses. FS and GS bases
 * are different in every process; each notes its number behind both, to see later that it still reaches
 * its own.
 */
.macro START
        movl %eax, want+WANT_SEED
        movl %esp, want+WANT_STACK
        movl $USER_SS, want+WANT_DS
        movl $USER_SS, want+WANT_ES
        movl $TLS_A, want+WANT_FS
        movl $TLS_B, want+WANT_GS
        testl $1, %eax
        jz 1f
        movl $USER_ES, want+WANT_ES
1:      testl $2, %eax
        jz 1f
        movl $TLS_B, want+WANT_FS
        movl $TLS_A, want+WANT_GS
1:      RELOAD_SELECTORS want
        movl %eax, %fs:0
        notl %eax
        movl %eax, %gs:0
.endm

/* Does FS (GS) still lead to this process's own? */
.macro CHECK_BASES fail
        movl want+WANT_SEED, %eax
        cmpl %eax, %fs:0
        je 8f
        pushl $CORRUPT_FS_BASE
        jmp \fail
8:      notl %eax
        cmpl %eax, %gs:0
        je 8f
        pushl $CORRUPT_GS_BASE
        jmp \fail
8:
.endm

/* The kernel returns to where EDX points, with ESP = ECX. */
.macro FAST_CALL
        movl %esp, %ecx
        movl $9f, %edx
        sysenter
9:
.endm

/* Target of the checks: the register's number is on the stack. Tell the kernel, start again. */
.macro FAIL label, where, again
\label: cld
        RELOAD_SELECTORS want
        popl %ebx
        movl $\where, %esi
        movl $SYS_CORRUPT, %eax
        int $0x80
        movl $SYS_YIELD, %eax                   /* the failure may be that nobody else gets the CPU */
        int $0x80
        movl want+WANT_STACK, %esp
        jmp \again
.endm
