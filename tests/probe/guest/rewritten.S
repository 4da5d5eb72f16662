/*
 * A guest that runs handlers as ordinary code, and later, all in a loop that has been translated, makes a gate lead to one
 * of them after the other: each time through the table's other address (64-bit code), and but for the first time after more
 * stores elsewhere than the probe notes. Ends by isa-debug-exit.
 */
#include "boot.h"

#define HANDLERS 8
#define STORES 600000 /* of two instructions each */

/* Run the handler at %AX as ordinary code: with a frame such as the CPU would push, by a jump. */
run:
#if BITS == 64
        mov %rsp, %rdx
        and $-16, %rsp
        push $DATA_SELECTOR
        push %rdx
#endif
        pushf
        push $CODE_SELECTOR
        push $9f
        jmp *%AX
9:      ret

main:
#if BITS == 64
        movl $table2 + 7, table3 + 24 /* the fourth GiB is the first one, too */
        mov %cr3, %rax
        mov %rax, %cr3
#endif
        gate 6, another
        xor %esi, %esi /* nothing was raised */
        xor %edi, %edi
1:      mov order(,%edi,4), %eax
        call run
        inc %edi
        cmp $HANDLERS, %edi
        jne 1b
        inc %esi
        xor %edi, %edi
        xor %ebp, %ebp
2:      mov order(,%edi,4), %eax
#if BITS == 64
        mov %ax, idt + (6 << GATE_SHIFT)(%rbp)
        mov $0xc0000000, %ecx
        xor %rcx, %rbp
#else
        mov %ax, idt + (6 << GATE_SHIFT)
#endif
        ud2
        mov $STORES, %ecx
3:      mov %ecx, elsewhere
        mov %edi, elsewhere + 4
        dec %ecx
        jnz 3b
        inc %edi
        cmp $HANDLERS, %edi
        jne 2b
        mov $0xf4, %edx
        out %al, %dx
4:      hlt
        jmp 4b

        .balign 64
another:
        IRET
        .balign 64
handlers:
        .rept HANDLERS
        .balign 64
        test %esi, %esi
        jz 3f
#if BITS == 64
        addq $2, (%rsp)
#else
        addl $2, (%esp)
#endif
3:      IRET
        .endr

        .data
        .balign 8192
elsewhere:
        .long 0, 0
order:
        .set n, 0
        .rept HANDLERS
        .long handlers + 64 * n
        .set n, n + 1
        .endr
        .text
