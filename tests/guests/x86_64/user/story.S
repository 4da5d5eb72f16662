/*
 * "Context-switching gone wrong": a random number is taken modulo two, and what to do if the result is
 * neither 0 nor 1 is `unreachable`. Only flags that do not belong to the comparison lead there.
 *
 * QEMU takes interrupts between translated blocks only, and AND, CMP, JNE make one block. A block ends
 * where a page ends; so the second JNE is the first instruction of a page, and an interrupt can come
 * between it and its CMP, as it can anywhere on a real processor.
 */
#include "program.h"

#ifdef BUG_WRONG_THREAD
#define NUMBERS_PER_CALL 100000 /* the more calls, the more often two of them meet */
#else
#define NUMBERS_PER_CALL 2000000
#endif

        .section .user_text.story, "ax"
        .balign 4096
story_page:
        .globl story_main
        .type story_main, @function
story_main:
        START
        movq %rdi, %rbx
        xorl %r12d, %r12d                       /* zeros seen */
        xorl %r13d, %r13d                       /* ones seen */
        movl $NUMBERS_PER_CALL, %r14d
        movabsq $6364136223846793005, %r15
story_loop:
        imulq %r15, %rbx
        incq %rbx
        movq %rbx, %rax
        shrq $33, %rax
        movq %rax, %rdx
        and $1, %rax
        cmp $0, %rax
        jne not_zero
        incq %r12
        jmp story_next
story_one:
        incq %r13
story_next:
        decq %r14
        jnz story_loop
        CHECK_BASES story_failed
        movl $NUMBERS_PER_CALL, %r14d
        xorl %edi, %edi
        movl $SYS_YIELD, %eax
        cmpl $1, %edi                           /* so that ZF is clear in the flags of this call */
        syscall
        CHECK_RSP want, story_call_failed
        jmp story_loop
unreachable:
        movl $SYS_IMPOSSIBLE, %eax
        cmpl $1, %r14d
        syscall
        jmp story_next
        FAIL story_failed, WHERE_COMPUTING, story_loop
        FAIL story_call_failed, WHERE_SYSCALL, story_loop

        .org story_page + 4096 - 11
not_zero:
        movq %rdx, %rax
        and $1, %rax
        cmp $1, %rax
        .if . - not_zero != 11
        .error "the comparison must end with its page"
        .endif
        jne unreachable
        jmp story_one
        .size story_main, . - story_main

        .section .user_data, "aw"
        .balign 16
want:   .skip WANT_SIZE
