/*
 * NMIs have no stack of their own here. Wherever one comes, memory below ESP is free, also in a save area;
 * so it may push, but must leave all else alone.
 */
#include "layout.h"

        .text
        .globl nmi_entry
        .type nmi_entry, @function
nmi_entry:
        pushl %eax
        movl %ss:nmi_count, %eax                /* DS may be the user's */
        incl %eax
        movl %eax, %ss:nmi_count
        popl %eax
        iretl
        .size nmi_entry, . - nmi_entry

        .bss
        .balign 4
nmi_count: .skip 4
