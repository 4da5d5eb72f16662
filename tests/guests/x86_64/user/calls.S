/* System calls of every kind, with computing in between; only RAX (RCX, R11) may come back changed. */
#include "program.h"

#define PAUSE_TURNS TURNS_PER_MS

/* Make call `number` by `instruction` with registers full of known values; `expect` is its result. */
.macro CALL number, instruction, rdi, rsi, expect
        PATTERN_RUN want, PAUSE_TURNS, calls_failed
        PATTERN_MAKE want
        movq $\rdi, %rax
        movq %rax, want+WANT_RDI(%rip)
        movq $\rsi, %rax
        movq %rax, want+WANT_RSI(%rip)
        PATTERN_LOAD want
        movl $\number, %eax
        \instruction
        PATTERN_CHECK_SYSCALL want, calls_call_failed
        CHECK_RSP want, calls_call_failed
        cmpq $\expect, %rax
        je 8f
        pushq $CORRUPT_RESULT
        jmp calls_call_failed
8:
.endm

.macro CALL_INT80 number, rdi, rsi, expect
        CALL \number, "int $0x80", \rdi, \rsi, \expect
        /* Unlike SYSCALL, this way in leaves RCX and R11 alone. */
        CHECK_REG want, rcx, 2, calls_call_failed
        CHECK_REG want, r11, 11, calls_call_failed
.endm

#define BAD_POINTER 0x10000
#define TEXT_SUM ('g' + 'u' + 'e' + 's' + 't')

        .section .user_text, "ax"
        .globl calls_main
        .type calls_main, @function
calls_main:
        START
calls_again:
        CALL SYS_YIELD, syscall, 0, 0, 0
        CALL_INT80 SYS_COPY, text, 5, TEXT_SUM
        CALL SYS_COPY, syscall, BAD_POINTER, 5, -EFAULT
        CALL_INT80 SYS_YIELD, 0, 0, 0
        CALL SYS_COPY_END, syscall, BAD_POINTER, 5, -EFAULT
        CALL SYS_COPY_END, syscall, text, 5, TEXT_SUM
        CALL_INT80 SYS_COPY, BAD_POINTER, 5, -EFAULT
        CALL_INT80 SYS_COPY_END, BAD_POINTER, 5, -EFAULT

        /* A page that is given back reads as zero when it is touched again, here and by the kernel. */
        CALL SYS_UNMAP, syscall, USER_HEAP, 0, 0
        CALL SYS_COPY, syscall, USER_HEAP, 8, 0
        movl $USER_HEAP, %edi
        movq $-1, 8(%rdi)
        CALL SYS_UNMAP, syscall, USER_HEAP, 0, 0
        movl $USER_HEAP, %edi
        pushq $CORRUPT_RESULT
        std                                     /* as if it was about to fill the page downwards */
        cmpq $0, 8(%rdi)
        cld
        jne calls_failed
        popq %rax

        /* A breakpoint changes nothing at all. */
        PATTERN_MAKE want
        PATTERN_LOAD want
        int3
        PATTERN_CHECK_SYSCALL want, calls_call_failed
        CHECK_REG want, rax, 0, calls_call_failed
        CHECK_REG want, rcx, 2, calls_call_failed
        CHECK_REG want, r11, 11, calls_call_failed

        /* The timer's interrupt waits while the kernel works, and comes at once on the way out. */
        CALL SYS_WORK, syscall, 0, 0, 0
#ifdef IRET_FAULT
        CALL_INT80 SYS_BAD_RETURN, ABSENT_SS, 0, -EFAULT
#endif

        /* Go on elsewhere, with flags of one's own choice: IOPL and IF must not follow them. */
        PATTERN_RUN want, PAUSE_TURNS, calls_failed
        leaq 1f(%rip), %rdi
        leaq -64(%rsp), %rsi
        movl $RFLAGS_IOPL | 0x0c5, %edx         /* SF ZF PF CF */
        movl $SYS_JUMP, %eax
        syscall
        pushq $CORRUPT_RIP
        jmp calls_call_failed
1:      pushfq
        popq %rax
        addq $64, %rsp
        pushq $CORRUPT_RFLAGS
        cmpl $RFLAGS_IF | 0x0c7, %eax
        jne calls_call_failed
        popq %rax
        /* An address that no instruction can have is refused. */
        movabsq $0x800000000000, %rdi
        movl $SYS_JUMP, %eax
        syscall
        pushq $CORRUPT_RESULT
        cmpq $-EFAULT, %rax
        jne calls_call_failed
        popq %rax

        CHECK_BASES calls_failed
        CALL SYS_SLEEP, syscall, 2, 0, 0
        CALL_INT80 SYS_SLEEP, 3, 0, 0
        jmp calls_again
        FAIL calls_failed, WHERE_COMPUTING, calls_again
        FAIL calls_call_failed, WHERE_SYSCALL, calls_again
        .size calls_main, . - calls_main

        .section .user_data, "aw"
        .balign 16
want:   .skip WANT_SIZE
text:   .ascii "guest"
