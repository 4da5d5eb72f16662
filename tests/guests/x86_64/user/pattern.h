/*
 * Registers full of known values, for programs and kernel threads that check themselves. WANT is a place of
 * 24 words: 16 register values (by the numbers that SYS_CORRUPT gets; RSP's is unused), the flags, MXCSR,
 * the round, the seed, the initial RSP.
 */
#include "layout.h"

#define WANT_RAX (0 * 8)
#define WANT_RBX (1 * 8)
#define WANT_RCX (2 * 8)
#define WANT_RDX (3 * 8)
#define WANT_RSI (4 * 8)
#define WANT_RDI (5 * 8)
#define WANT_RBP (6 * 8)
#define WANT_R8 (8 * 8)
#define WANT_R9 (9 * 8)
#define WANT_R10 (10 * 8)
#define WANT_R11 (11 * 8)
#define WANT_R12 (12 * 8)
#define WANT_R13 (13 * 8)
#define WANT_R14 (14 * 8)
#define WANT_R15 (15 * 8)
#define WANT_FLAGS (16 * 8)
#define WANT_MXCSR (17 * 8)
#define WANT_ROUND (18 * 8)
#define WANT_SEED (19 * 8)
#define WANT_STACK (20 * 8) /* RSP to go back to after a failure */
#define WANT_SIZE (24 * 8)

/* New values: they depend on the seed, the round and the register, so that none is ever met twice. */
.macro PATTERN_MAKE want
        incq \want+WANT_ROUND(%rip)
        movq \want+WANT_ROUND(%rip), %rax
        movabsq $0x9e3779b97f4a7c15, %rcx
        addq \want+WANT_SEED(%rip), %rax
        imulq %rcx, %rax
        leaq \want(%rip), %rdi
        movl $16, %ecx
1:      movq %rax, (%rdi)
        addq $8, %rdi
        rolq $7, %rax
        addq %rdi, %rax
        loop 1b
        movq %rax, %rcx
        andl $RFLAGS_USER, %ecx
        orl $RFLAGS_IF | 2, %ecx
        movq %rcx, \want+WANT_FLAGS(%rip)
        andl $0x6000, %eax                      /* rounding mode */
        orl $0x1f80, %eax                       /* exceptions masked */
        movl %eax, \want+WANT_MXCSR(%rip)
.endm

/* All general registers but RSP. */
.macro PATTERN_LOAD want
        movq \want+WANT_RAX(%rip), %rax
        movq \want+WANT_RBX(%rip), %rbx
        movq \want+WANT_RCX(%rip), %rcx
        movq \want+WANT_RDX(%rip), %rdx
        movq \want+WANT_RSI(%rip), %rsi
        movq \want+WANT_RDI(%rip), %rdi
        movq \want+WANT_RBP(%rip), %rbp
        movq \want+WANT_R8(%rip), %r8
        movq \want+WANT_R9(%rip), %r9
        movq \want+WANT_R10(%rip), %r10
        movq \want+WANT_R11(%rip), %r11
        movq \want+WANT_R12(%rip), %r12
        movq \want+WANT_R13(%rip), %r13
        movq \want+WANT_R14(%rip), %r14
        movq \want+WANT_R15(%rip), %r15
.endm

/* XMM0-15, both halves, and MXCSR. */
.macro PATTERN_LOAD_XMM want
        .set i, 0
        .irp reg, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        movq \want + 8 * i(%rip), %xmm\reg
        punpcklqdq %xmm\reg, %xmm\reg
        .set i, i + 1
        .endr
        ldmxcsr \want+WANT_MXCSR(%rip)
.endm

.macro CHECK_REG want, reg, number, fail
        cmpq \want + 8 * \number(%rip), %\reg
        je 8f
        pushq $\number
        jmp \fail
8:
.endm

.macro PATTERN_CHECK_PRESERVED want, fail
        CHECK_REG \want, rbx, 1, \fail
        CHECK_REG \want, rbp, 6, \fail
        CHECK_REG \want, r12, 12, \fail
        CHECK_REG \want, r13, 13, \fail
        CHECK_REG \want, r14, 14, \fail
        CHECK_REG \want, r15, 15, \fail
.endm

/* Where the stack is as it was at the start. */
.macro CHECK_RSP want, fail
        cmpq \want+WANT_STACK(%rip), %rsp
        je 8f
        pushq $7
        jmp \fail
8:
.endm

/* All but RSP, RAX, RCX, R11. On a difference: push the register's number, go to `fail`. */
.macro PATTERN_CHECK_SYSCALL want, fail
        PATTERN_CHECK_PRESERVED \want, \fail
        CHECK_REG \want, rdx, 3, \fail
        CHECK_REG \want, rsi, 4, \fail
        CHECK_REG \want, rdi, 5, \fail
        CHECK_REG \want, r8, 8, \fail
        CHECK_REG \want, r9, 9, \fail
        CHECK_REG \want, r10, 10, \fail
.endm

.macro PATTERN_CHECK_XMM want, fail
        .set i, 0
        .irp reg, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        movq %xmm\reg, %rax
        cmpq \want + 8 * i(%rip), %rax
        jne 7f
        movhlps %xmm\reg, %xmm\reg
        movq %xmm\reg, %rax
        cmpq \want + 8 * i(%rip), %rax
        jne 7f
        .set i, i + 1
        .endr
        subq $8, %rsp
        stmxcsr (%rsp)
        popq %rax
        cmpl \want+WANT_MXCSR(%rip), %eax
        je 8f
7:      pushq $CORRUPT_XMM
        jmp \fail
8:
.endm

/*
 * The heart: registers and flags are loaded, LOOP, which touches no flag, runs for `turns`, then all is
 * compared. Only RCX moves meanwhile. Each turn begins a block of its own, so an interrupt can come in
 * between any two.
 */
.macro PATTERN_RUN want, turns, fail
        PATTERN_MAKE \want
        PATTERN_LOAD_XMM \want
        PATTERN_LOAD \want
        movl $\turns, %ecx
        pushq \want+WANT_FLAGS(%rip)
        popfq
1:      loop 1b
        pushfq
        cld
        CHECK_REG \want, rax, 0, \fail
        CHECK_REG \want, r11, 11, \fail
        PATTERN_CHECK_SYSCALL \want, \fail
        popq %rax
        andl $RFLAGS_USER | RFLAGS_IF | RFLAGS_IOPL | 2, %eax
        cmpl \want+WANT_FLAGS(%rip), %eax
        je 8f
        pushq $CORRUPT_RFLAGS
        jmp \fail
8:      PATTERN_CHECK_XMM \want, \fail
.endm
