/*
 * A guest whose interrupt table lies above 16 MiB, and the pointer to it where the address in lidt looks like a prefix.
 * In 32-bit mode it is then loaded by 16-bit code, too, for which the prefix means the opposite. Ends by isa-debug-exit.
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
#if BITS == 32
        lidt idt_pointer
        lgdt gdt16_pointer
        ljmp $24, $2f
        .code16
2:      mov $far_pointer, %ebx
        lidtl (%ebx)
        data32 ljmp $CODE_SELECTOR, $3f
        .code32
3:      int3
        int3
#endif
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
gdt16:  .quad 0
        .quad 0x00cf9a000000ffff
        .quad 0x00cf92000000ffff
        .quad 0x008f9a000000ffff
gdt16_pointer:
        .word . - gdt16 - 1
        .quad gdt16
        .text
