/* System calls of every kind, with computing in between; only EAX (by SYSENTER: ECX, EDX) may come back changed. */
#include "program.h"

#define PAUSE_TURNS TURNS_PER_MS

/* Compute, then load the registers for a call. */
.macro PREPARE number, ebx, esi
        PATTERN_RUN want, PAUSE_TURNS, calls_failed
        PATTERN_MAKE want
        movl $\ebx, want+WANT_EBX
        movl $\esi, want+WANT_ESI
        PATTERN_LOAD want
        movl $\number, %eax
.endm

.macro CHECK_RESULT expect
        PATTERN_CHECK_PRESERVED want, calls_call_failed
        cmpl $\expect, %eax
        je 8f
        pushl $CORRUPT_RESULT
        jmp calls_call_failed
8:      CHECK_SELECTORS want, calls_call_failed
.endm

.macro CALL_SYSENTER number, ebx, esi, expect
        PREPARE \number, \ebx, \esi
        FAST_CALL
        CHECK_RESULT \expect
.endm

.macro CALL_INT80 number, ebx, esi, expect
        PREPARE \number, \ebx, \esi
        int $0x80
        CHECK_REG want, ecx, 2, calls_call_failed
        CHECK_REG want, edx, 3, calls_call_failed
        CHECK_RESULT \expect
.endm

#define BAD_POINTER 0x10000
#define TEXT_SUM ('g' + 'u' + 'e' + 's' + 't')

        .section .user_text, "ax"
        .globl calls_main
        .type calls_main, @function
calls_main:
        START
calls_again:
        CALL_SYSENTER SYS_YIELD, 0, 0, 0
        CALL_INT80 SYS_COPY, text, 5, TEXT_SUM
        CALL_SYSENTER SYS_COPY, BAD_POINTER, 5, -EFAULT
        CALL_INT80 SYS_YIELD, 0, 0, 0
        CALL_SYSENTER SYS_COPY_END, BAD_POINTER, 5, -EFAULT
        CALL_SYSENTER SYS_COPY_END, text, 5, TEXT_SUM
        CALL_INT80 SYS_COPY, BAD_POINTER, 5, -EFAULT
        CALL_INT80 SYS_COPY_END, BAD_POINTER, 5, -EFAULT

        /* A page that is given back reads as zero when it is touched again, here and by the kernel. */
        CALL_SYSENTER SYS_UNMAP, USER_HEAP, 0, 0
        CALL_SYSENTER SYS_COPY, USER_HEAP, 8, 0
        movl $USER_HEAP, %edi
        movl $-1, 8(%edi)
        CALL_SYSENTER SYS_UNMAP, USER_HEAP, 0, 0
        movl $USER_HEAP, %edi
        pushl $CORRUPT_RESULT
        std                                     /* as if it was about to fill the page downwards */
        cmpl $0, 8(%edi)
        cld
        jne calls_failed
        popl %eax

        /* A breakpoint changes nothing at all. */
        PATTERN_MAKE want
        PATTERN_LOAD want
        int3
        PATTERN_CHECK_PRESERVED want, calls_call_failed
        CHECK_REG want, eax, 0, calls_call_failed
        CHECK_REG want, ecx, 2, calls_call_failed
        CHECK_REG want, edx, 3, calls_call_failed

        /* The timer's interrupt waits while the kernel works, and comes at once on the way out. */
        CALL_SYSENTER SYS_WORK, 0, 0, 0

        /* Go on elsewhere, with flags of one's own choice: IOPL and IF must not follow them. */
        PATTERN_RUN want, PAUSE_TURNS, calls_failed
        movl $1f, %ebx
        leal -64(%esp), %esi
        movl $RFLAGS_IOPL | 0x0c5, %edi         /* SF ZF PF CF */
        movl $SYS_JUMP, %eax
        FAST_CALL
        pushl $CORRUPT_RIP
        jmp calls_call_failed
1:      pushfl
        popl %eax
        leal 64(%esp), %esp
        pushl $CORRUPT_RFLAGS
        cmpl $RFLAGS_IF | 0x0c7, %eax
        jne calls_call_failed
        popl %eax
        /* An address that no program can have is refused. */
        movl $KERNEL_BASE, %ebx
        movl $SYS_JUMP, %eax
        int $0x80
        pushl $CORRUPT_RESULT
        cmpl $-EFAULT, %eax
        jne calls_call_failed
        popl %eax

        CHECK_BASES calls_failed
        CALL_SYSENTER SYS_SLEEP, 2, 0, 0
        CALL_INT80 SYS_SLEEP, 3, 0, 0
        jmp calls_again
        FAIL calls_failed, WHERE_COMPUTING, calls_again
        FAIL calls_call_failed, WHERE_SYSCALL, calls_again
        .size calls_main, . - calls_main

        .section .user_data, "aw"
        .balign 16
want:   .skip WANT_SIZE
text:   .ascii "guest"
