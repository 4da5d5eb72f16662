/*
 * A guest with two threads. The first gives way twice: it comes back by a return that is out of sight of the switch, and by
 * iret. In between an interrupt meets it right behind its call of the switch, with another register. Ends by isa-debug-exit.
 */
#include "boot.h"

main:   gate 0x40, handler
        mov $1, %ebx
        push $back
        jmp give_way
again:  int $0x40
back:   cmp $2, %ebx
        je 1f
        mov $2, %ebx
        jmp again
1:      movl $by_iret, other
        push $2f
        jmp give_way
2:      mov $0xf4, %edx
        out %al, %dx
3:      hlt
        jmp 3b

        .balign 64
handler:
        IRET

        .balign 64
give_way:
        mov %SP, first
        mov other_sp, %SP
        ret

by_return:
        mov first, %SP
        push %AX
        jmp out_of_sight
by_iret:
        mov first, %AX
        mov (%AX), %CX
#if BITS == 64
        lea 8(%rax), %rdx
        push $DATA_SELECTOR
        push %rdx
#else
        lea 4(%eax), %esp
#endif
        pushf
        push $CODE_SELECTOR
        push %CX
        IRET

        .skip 4096
out_of_sight:
        pop %AX
        ret

        .data
        .balign 8
first:  .quad 0
other_sp:
        .quad other
        .skip 1024
other:  .quad by_return
        .text
