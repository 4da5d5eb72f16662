/*
 * A guest that runs its handlers as ordinary code, then rewrites a gate in place to lead to them and raises an exception,
 * all in a loop that has long been translated: nothing tells of the first delivery. The last handler never ran: it is
 * merely where a branch would go. Ends by isa-debug-exit.
 */
#include "boot.h"

main:
        xor %esi, %esi /* nothing was raised */
        gate 6, first
        run second
        run third
        inc %esi
        xor %edi, %edi
1:      mov order(,%edi,4), %eax
        mov %ax, idt + (6 << GATE_SHIFT)
        ud2
        inc %edi
        cmp $-1, %edi
        je fourth
        cmp $(order_end - order) / 4, %edi
        jne 1b
        mov $0xf4, %edx
        out %al, %dx
2:      hlt
        jmp 2b

        .macro handler
        .balign 64
        test %esi, %esi
        jz 3f
#if BITS == 64
        addq $2, (%rsp)
#else
        addl $2, (%esp)
#endif
3:      IRET
        .endm

        .balign 64
first:  handler
        .balign 64
second: handler
        .balign 64
third:  handler
        .balign 64
fourth: handler

        .data
order:
        .rept 4
        .long first
        .endr
        .rept 10
        .long second
        .endr
        .rept 10
        .long third, first, second
        .endr
        .rept 3
        .long fourth
        .endr
order_end:
        .text
