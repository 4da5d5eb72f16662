/* What the user programs share. Each process has its own copy of the data. */
#include "pattern.h"

#define TURNS_PER_MS 400000 /* of LOOP, very roughly, under TCG */

/*
 * Start of a program: RDI is the process's number. FS and GS bases are different in every process; each
 * notes its number behind both, to see later that it still reaches its own.
 */
.macro START
        movq %rdi, want+WANT_SEED(%rip)
        movq %rsp, want+WANT_STACK(%rip)
        movq %rdi, %fs:0
#ifndef NO_USER_GS
        movq %rdi, %gs:0
#endif
.endm

/* Does FS (GS) still lead to this process's own? */
.macro CHECK_BASES fail
        movq want+WANT_SEED(%rip), %rax
        cmpq %rax, %fs:0
        je 8f
        pushq $CORRUPT_FS_BASE
        jmp \fail
8:
#ifndef NO_USER_GS
        cmpq %rax, %gs:0
        je 8f
        pushq $CORRUPT_GS_BASE
        jmp \fail
8:
#endif
#ifdef FSGSBASE
        /* Bases that the kernel has not chosen: 256 bytes further, and back the next time. */
        rdfsbase %rdx
        xorq $0x100, %rdx
        wrfsbase %rdx
        movq %rax, %fs:0
        rdgsbase %rdx
        xorq $0x100, %rdx
        wrgsbase %rdx
        movq %rax, %gs:0
#endif
.endm

/* Target of the checks: the register's number is on the stack. Tell the kernel, start again. */
.macro FAIL label, where, again
\label: cld
        popq %rdi
        movl $\where, %esi
        movl $SYS_CORRUPT, %eax
        syscall
        movl $SYS_YIELD, %eax                   /* the failure may be that nobody else gets the CPU */
        syscall
        movq want+WANT_STACK(%rip), %rsp
        jmp \again
.endm
