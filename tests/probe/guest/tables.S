/*
 * A guest that loads two interrupt tables in turn, when all its code has long been translated, and raises two exceptions
 * through each. A gate of the second leads to a handler that was run as ordinary code before. Then it rewrites a gate in
 * place, again and again. Ends by isa-debug-exit.
 */
#include "boot.h"

main:
        /* run `other` as ordinary code, with a frame such as the CPU would push */
#if BITS == 64
        mov %rsp, %rdx
        push $DATA_SELECTOR
        push %rdx
#endif
        pushf
        push $CODE_SELECTOR
        push $1f
        jmp other
1:      gate 3, other
        gate 6, over
        mov $idt, %esi
        mov $idt2, %edi
        mov $1024, %ecx
        cld
        rep movsl
        gate 3, behind
        xor %edi, %edi
2:      mov order(,%edi,4), %ebx
        lidt (%BX)
        int3
        ud2
        inc %edi
        cmp $(order_end - order) / 4, %edi
        jne 2b
        xor %edi, %edi
3:      mov handlers(,%edi,4), %eax
        mov %ax, idt + (3 << GATE_SHIFT)
        int3
        inc %edi
        cmp $(handlers_end - handlers) / 4, %edi
        jne 3b
        mov $0xf4, %edx
        out %al, %dx
4:      hlt
        jmp 4b

over:
#if BITS == 64
        addq $2, (%rsp)
#else
        addl $2, (%esp)
#endif
        IRET
behind: nop
        IRET
other:  nop
        nop
        IRET

        .data
        .balign 8
idt2_pointer:
        .word (256 << GATE_SHIFT) - 1
        .quad idt2
order:
        .rept 10
        .long idt_pointer
        .endr
        .rept 100
        .long idt2_pointer, idt_pointer
        .endr
order_end:
handlers:
        .rept 10
        .long behind
        .endr
        .rept 100
        .long other, behind
        .endr
handlers_end:
        .bss
        .balign 4096
idt2:   .skip 4096
        .text
