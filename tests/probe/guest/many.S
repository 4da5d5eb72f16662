/*
 * A guest whose handler of int3 is another one each time, made when it is due: 8000 in all. Ends by isa-debug-exit.
 */
#include "boot.h"

main:   gate 3, made
        mov $made, %esi
        xor %edi, %edi
1:
#if BITS == 64
        movw $0xcf48, (%rsi)
#else
        movb $0xcf, (%esi)
#endif
        mov %esi, %eax
        mov %ax, idt + (3 << GATE_SHIFT)
        shr $16, %eax
        mov %ax, idt + (3 << GATE_SHIFT) + 6
        int3
        add $16, %esi
        inc %edi
        cmp $8000, %edi
        jne 1b
        mov $0xf4, %edx
        out %al, %dx
2:      hlt
        jmp 2b

        .bss
        .balign 16
made:   .skip 8000 * 16
        .text
