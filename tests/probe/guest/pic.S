/*
 * A guest that leaves the interrupt controller as the firmware has it: the timer comes through vector 8, as #DF would, and
 * pushes no error code. Then a #GP comes, which pushes one. Ends by isa-debug-exit.
 */
#include "boot.h"

main:
        gate 8, timer
        gate 13, fault
        mov $0xfe, %al
        out %al, $0x21 /* the timer alone */
        xor %ecx, %ecx
        sti
1:      cmp $3, %ecx
        jb 1b
        cli
        mov $0x1238, %eax
here:   mov %eax, %ds
there:  mov $0xf4, %edx
        out %al, %dx
2:      hlt
        jmp 2b

        .balign 16
timer:
        push %AX
        mov $0x20, %al
        out %al, $0x20
        inc %ecx
        pop %AX
        IRET

        .balign 16
fault:
        add $W, %SP
#if BITS == 64
        addq $there - here, (%rsp)
#else
        addl $there - here, (%esp)
#endif
        IRET
