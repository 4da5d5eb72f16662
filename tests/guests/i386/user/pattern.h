/*
 * Registers full of known values, for programs and kernel threads that check themselves. WANT is a place of
 * 32 words: 16 values, of which the general registers get the first seven (in slot order; ESP's is unused)
 * and XMM0-7 two each; the flags, MXCSR, the round, the seed, the selectors.
 */
#include "layout.h"

#define WANT_EAX 0
#define WANT_EBX 4
#define WANT_ECX 8
#define WANT_EDX 12
#define WANT_ESI 16
#define WANT_EDI 20
#define WANT_EBP 24
#define WANT_VALUES 16
#define WANT_FLAGS (16 * 4)
#define WANT_MXCSR (17 * 4)
#define WANT_ROUND (18 * 4)
#define WANT_SEED (19 * 4)
#define WANT_DS (20 * 4)
#define WANT_ES (21 * 4)
#define WANT_FS (22 * 4)
#define WANT_GS (23 * 4)
#define WANT_STACK (24 * 4) /* ESP to go back to after a failure */
#define WANT_SIZE (32 * 4)

/* New values: they depend on the seed, the round and the register, so that none is ever met twice. */
.macro PATTERN_MAKE want
        incl \want+WANT_ROUND
        movl \want+WANT_ROUND, %eax
        shll $8, %eax
        addl \want+WANT_SEED, %eax
        imull $0x9e3779b9, %eax, %eax
        movl $\want, %edi
        movl $WANT_VALUES, %ecx
1:      movl %eax, (%edi)
        addl $4, %edi
        roll $7, %eax
        addl %edi, %eax
        loop 1b
        movl %eax, %ecx
        andl $RFLAGS_USER, %ecx
        orl $RFLAGS_IF | 2, %ecx
        movl %ecx, \want+WANT_FLAGS
        andl $0x6000, %eax                      /* rounding mode */
        orl $0x1f80, %eax                       /* exceptions masked */
        movl %eax, \want+WANT_MXCSR
.endm

/* All general registers but ESP. */
.macro PATTERN_LOAD want
        movl \want+WANT_EAX, %eax
        movl \want+WANT_EBX, %ebx
        movl \want+WANT_ECX, %ecx
        movl \want+WANT_EDX, %edx
        movl \want+WANT_ESI, %esi
        movl \want+WANT_EDI, %edi
        movl \want+WANT_EBP, %ebp
.endm

/* XMM0-7, both halves, and MXCSR. */
.macro PATTERN_LOAD_XMM want
        .set i, 0
        .irp reg, 0, 1, 2, 3, 4, 5, 6, 7
        movq \want + 8 * i, %xmm\reg
        punpcklqdq %xmm\reg, %xmm\reg
        .set i, i + 1
        .endr
        ldmxcsr \want+WANT_MXCSR
.endm

.macro CHECK_REG want, reg, number, fail
        cmpl \want + 4 * \number, %\reg
        je 8f
        pushl $\number
        jmp \fail
8:
.endm

.macro PATTERN_CHECK_PRESERVED want, fail
        CHECK_REG \want, ebx, 1, \fail
        CHECK_REG \want, esi, 4, \fail
        CHECK_REG \want, edi, 5, \fail
        CHECK_REG \want, ebp, 6, \fail
.endm

.macro PATTERN_CHECK_XMM want, fail
        subl $16, %esp
        .set i, 0
        .irp reg, 0, 1, 2, 3, 4, 5, 6, 7
        movdqu %xmm\reg, (%esp)
        movl \want + 8 * i, %eax
        movl \want + 8 * i + 4, %edx
        cmpl %eax, (%esp)
        jne 7f
        cmpl %edx, 4(%esp)
        jne 7f
        cmpl %eax, 8(%esp)
        jne 7f
        cmpl %edx, 12(%esp)
        jne 7f
        .set i, i + 1
        .endr
        stmxcsr (%esp)
        movl (%esp), %eax
        cmpl \want+WANT_MXCSR, %eax
7:      leal 16(%esp), %esp
        je 8f
        pushl $CORRUPT_XMM
        jmp \fail
8:
.endm

.macro CHECK_SELECTOR want, reg, offset, number, fail
        movl %\reg, %eax
        cmpl \want + \offset, %eax
        je 8f
        pushl $\number
        jmp \fail
8:
.endm

/* DS ES FS GS as they should be? */
.macro CHECK_SELECTORS want, fail
        CHECK_SELECTOR \want, ds, WANT_DS, CORRUPT_DS, \fail
        CHECK_SELECTOR \want, es, WANT_ES, CORRUPT_ES, \fail
        CHECK_SELECTOR \want, fs, WANT_FS, CORRUPT_FS, \fail
        CHECK_SELECTOR \want, gs, WANT_GS, CORRUPT_GS, \fail
.endm

.macro RELOAD_SELECTORS want
        movw \want+WANT_ES, %es
        movw \want+WANT_FS, %fs
        movw \want+WANT_GS, %gs
        movw \want+WANT_DS, %ds
.endm

/*
 * The heart: registers and flags are loaded, LOOP, which touches no flag, runs for `turns`, then all is
 * compared. Only ECX moves meanwhile. Each turn begins a block of its own, so an interrupt can come in
 * between any two.
 */
.macro PATTERN_RUN want, turns, fail
        PATTERN_MAKE \want
        PATTERN_LOAD_XMM \want
        PATTERN_LOAD \want
        movl $\turns, %ecx
        pushl \want+WANT_FLAGS
        popfl
1:      loop 1b
        pushfl
        cld
        CHECK_REG \want, eax, 0, \fail
        CHECK_REG \want, edx, 3, \fail
        PATTERN_CHECK_PRESERVED \want, \fail
        popl %eax
        andl $RFLAGS_USER | RFLAGS_IF | RFLAGS_IOPL | 2, %eax
        cmpl \want+WANT_FLAGS, %eax
        je 8f
        pushl $CORRUPT_RFLAGS
        jmp \fail
8:      PATTERN_CHECK_XMM \want, \fail
        CHECK_SELECTORS \want, \fail
.endm
