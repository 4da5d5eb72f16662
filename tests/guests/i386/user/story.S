/*
 * "Context-switching gone wrong": a random number is taken modulo two, and what to do if the result is
 * neither 0 nor 1 is `unreachable`. Only flags that do not belong to the comparison lead there.
 *
 * QEMU takes interrupts between translated blocks only, and AND, CMP, JNE make one block. A block ends
 * where a page ends; so the second JNE is the first instruction of a page, and an interrupt can come
 * between it and its CMP, as it can anywhere on a real processor.
 */
#include "program.h"

#define NUMBERS_PER_CALL 2000000

        .section .user_text.story, "ax"
        .balign 4096
story_page:
        .globl story_main
        .type story_main, @function
story_main:
        START
        movl want+WANT_SEED, %ebx
        xorl %esi, %esi                         /* zeros seen */
        xorl %edi, %edi                         /* ones seen */
story_again:
        movl $NUMBERS_PER_CALL, %ebp
story_loop:
        imull $1664525, %ebx, %ebx
        addl $1013904223, %ebx
        movl %ebx, %eax
        shrl $15, %eax
        movl %eax, %edx
        and $1, %eax
        cmp $0, %eax
        jne not_zero
        incl %esi
        jmp story_next
story_one:
        incl %edi
story_next:
        decl %ebp
        jnz story_loop
        CHECK_BASES story_failed
        CHECK_SELECTORS want, story_failed
        movl $SYS_YIELD, %eax
        cmpl $1, %ebp                           /* so that ZF is clear in the flags of this call */
        FAST_CALL
        jmp story_again
unreachable:
        movl $SYS_IMPOSSIBLE, %eax
        cmpl $1, %ebp
        int $0x80
        jmp story_next
        FAIL story_failed, WHERE_COMPUTING, story_again

        .org story_page + 4096 - 8
not_zero:
        movl %edx, %eax
        and $1, %eax
        cmp $1, %eax
        .if . - not_zero != 8
        .error "the comparison must end with its page"
        .endif
        jne unreachable
        jmp story_one
        .size story_main, . - story_main

        .section .user_data, "aw"
        .balign 16
want:   .skip WANT_SIZE
