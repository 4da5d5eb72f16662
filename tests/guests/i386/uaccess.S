/*
 * Reading user memory. The pointer may be bad; the fixup table says where to go on after a fault.
 *
 * int copy_from_user(void *to, word from, word length)
 */
#include "layout.h"

.macro COPY at
        movl %esi, %eax                         /* ESI and EDI are the caller's: keep them in EAX and EDX */
        movl %edi, %edx
        movl 4(%esp), %edi
        movl 8(%esp), %esi
        movl 12(%esp), %ecx
\at:    rep movsb
        movl %eax, %esi
        movl %edx, %edi
.endm

        .text
        .globl copy_from_user
        .type copy_from_user, @function
copy_from_user:
        COPY 1
        xorl %eax, %eax
        ret
2:      movl %eax, %esi
        movl %edx, %edi
        movl $1, %eax
        ret
        .size copy_from_user, . - copy_from_user

        .section .fixups, "a"
        .long 1b, 2b

/* void copy_from_user_or_end(void *to, word from, word length): a fault ends the system call. */
        .text
        .globl copy_from_user_or_end
        .type copy_from_user_or_end, @function
copy_from_user_or_end:
        COPY 3
        ret
        .size copy_from_user_or_end, . - copy_from_user_or_end

        .section .fixups, "a"
        .long 3b, 0
