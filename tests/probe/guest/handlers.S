/*
 * A guest that does to its handlers what makes entries hard to see without QEMU's help: it runs them as ordinary code
 * before they are in a gate, rewrites gates in place, shares one handler between vectors, falls and jumps from one
 * handler into another, raises with `int` what normally pushes an error code, and starts a handler twice because its
 * first instruction faults, and takes an interrupt between another's delivery and its handler. Ends by isa-debug-exit
 * with the number of the last step.
 */
#include "boot.h"

main:
        /* 1: a handler that ran before it was in a gate */
        run plain1
        gate 0x40, plain1
        int $0x40
        /* 2: a gate rewritten in place, to a handler that ran before */
        gate 0x41, plain2
        int $0x41
        run plain3
        gate 0x41, plain3
        int $0x41
        /* 3: and back again */
        gate 0x41, plain2
        int $0x41
        /* 4: one handler for several vectors */
        gate 0x50, shared
        gate 0x51, shared
        gate 0x52, shared
        int $0x51
        int $0x52
        /* 5: an exception without error code, and the same vector by `int` */
        gate 6, skip2
        ud2
        gate 6, plain4
        int $6
        /* 6: one with error code, and the same vector by `int` without */
        gate 13, drop_error
        mov $0xfff0, %eax
        mov %eax, %fs
        gate 13, plain5
        int $13
        /* 7: one handler runs on into another, one jumps */
        gate 0x60, falls
        gate 0x61, fallen_into
        gate 0x63, jumps
        int $0x60
        int $0x61
        int $0x63
        /* 8: a handler whose first instruction faults and is run again */
        gate 6, mend
        gate 0x62, broken
        int $0x62
        /* 9: interrupts between the delivery of another and its handler's first instruction, until three were seen
           (at most some seconds); EDI counts the deliveries, ESI what the timer saw */
        gate 0x20, timer
        gate 0x70, plain6
        movb $0x8f, idt + (0x70 << GATE_SHIFT) + 5 /* a trap gate leaves IF set */
        .irp pair, 0x1120, 0x2021, 0x0421, 0x0121, 0xfe21, 0x3443, 0x8040, 0x0040 /* IRQ 0 is 0x20, at 9 kHz */
        mov $(\pair >> 8), %al
        out %al, $(\pair & 0xff)
        .endr
        xor %edi, %edi
        xor %esi, %esi
        sti
7:      inc %edi
        int $0x70
        cmp $3, %esi
        jae 6f
        cmp $500000, %edi
        jb 7b
6:      cli
        /* 10: an iret that only serialises */
#if BITS == 64
        mov %rsp, %rdx
        push $DATA_SELECTOR
        push %rdx
#endif
        pushf
        push $CODE_SELECTOR
        push $8f
        IRET
8:
        mov $10, %eax
        out %al, $0xf4
        hlt

        /* Handlers. Each begins a block of its own. */
        .balign 16
plain1: nop
        IRET
        .balign 16
plain2: nop
        IRET
        .balign 16
plain3: nop
        IRET
        .balign 16
plain4: nop
        IRET
        .balign 16
plain5: nop
        IRET
        .balign 16
timer:  push %AX
        cmpl $plain6, W(%SP)
        jne 1f
        inc %esi
1:      mov $0x20, %al
        out %al, $0x20
        pop %AX
        IRET
plain6: nop             /* right behind an iret that goes there */
        IRET
        .balign 16
shared: nop
        IRET
        .balign 16
skip2:
#if BITS == 64
        addq $2, (%rsp)
#else
        addl $2, (%esp)
#endif
        IRET
        .balign 16
drop_error:
        add $W, %SP
#if BITS == 64
        addq $2, (%rsp)
#else
        addl $2, (%esp)
#endif
        IRET
        .balign 16
falls:  nop
fallen_into:
        nop
        IRET
        .balign 16
jumps:  nop
        jmp fallen_into
        .balign 16
broken: ud2
        IRET
        .balign 16
mend:   movw $0x9090, broken
        IRET
