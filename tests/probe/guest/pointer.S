/*
 * A guest whose interrupt table lies above 16 MiB, and the pointer to it where the address in lidt looks like a prefix.
 * Ends by isa-debug-exit.
 */
#include "boot.h"

#define FAR 0x2000000

main:   gate 3, trap
        mov $idt, %esi
        mov $FAR, %edi
        mov $1024, %ecx
        cld
        rep movsl
        lidt far_pointer
        int3
        int3
        mov $0xf4, %edx
        out %al, %dx
1:      hlt
        jmp 1b
trap:   nop
        IRET

        .data
        .balign 256
        .skip 0x66
far_pointer:
        .word (256 << GATE_SHIFT) - 1
        .quad FAR
        .text
