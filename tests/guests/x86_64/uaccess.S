/*
 * Reading user memory. The pointer may be bad; the fixup table says where to go on after a fault.
 *
 * int copy_from_user(void *to, u64 from, u64 length)
 */
#include "layout.h"

        .text
        .globl copy_from_user
        .type copy_from_user, @function
copy_from_user:
        movq %rdx, %rcx
1:      rep movsb
        xorl %eax, %eax
        ret
2:      movl $1, %eax
        ret
        .size copy_from_user, . - copy_from_user

        .section .fixups, "a"
        .quad 1b, 2b

/* void copy_from_user_or_end(void *to, u64 from, u64 length): a fault ends the system call. */
        .text
        .globl copy_from_user_or_end
        .type copy_from_user_or_end, @function
copy_from_user_or_end:
        movq %rdx, %rcx
3:      rep movsb
        ret
        .size copy_from_user_or_end, . - copy_from_user_or_end

        .section .fixups, "a"
        .quad 3b, 0
