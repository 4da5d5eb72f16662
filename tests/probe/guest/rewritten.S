/*
 * A guest that runs handlers as ordinary code, and later makes a gate lead to one of them after the other, by an
 * instruction that has stored elsewhere first: all in a loop that has been translated, each time through the table's other
 * address (64-bit code). Before that come a million stores; behind it new code, all
 * that once more, and again, after an NMI, with other handlers by another instruction, which is new then. Ends by
 * isa-debug-exit.
 */
#include "boot.h"

#define HANDLERS 8
#define STORES 600000 /* of two instructions each */
#define BLOCKS 6000

/* Raise vector 6 with the handler that its gate has, and with each of the HANDLERS behind it in \order. */
        .macro pass order
        xor %edi, %edi
        mov $elsewhere, %BX
10:     mov \order(,%edi,4), %eax
        mov %ax, (%BX)
        ud2
        mov $idt + (6 << GATE_SHIFT), %BX
#if BITS == 64
        mov $0xc0000000, %ecx
        xor %rcx, %rbp
        add %rbp, %rbx
#endif
        inc %edi
        cmp $HANDLERS + 1, %edi
        jne 10b
        .endm

/* Run HANDLERS handlers from \order on as ordinary code. */
        .macro run_all order
        xor %esi, %esi /* nothing was raised */
        xor %edi, %edi
11:     mov \order(,%edi,4), %eax
        call run_at_ax
        inc %edi
        cmp $HANDLERS, %edi
        jne 11b
        inc %esi
        .endm

run_at_ax:
        run *%AX
        ret

main:
#if BITS == 64
        movl $table2 + 7, table3 + 24 /* the fourth GiB is the first one, too */
        mov %cr3, %rax
        mov %rax, %cr3
#endif
        gate 6, another
        run_all order
        mov $STORES, %ecx
2:      mov %ecx, elsewhere
        mov %edi, elsewhere + 4
        dec %ecx
        jnz 2b
        xor %ebp, %ebp
        movl $2, left
3:      pass order
        decl left
        jz 4f
        .rept BLOCKS
        jmp . + 2
        .endr
        jmp 3b
4:      gate 2, on_nmi
        movl $0, told
5:      cmpl $0, told
        je 5b
        run_all order+4*HANDLERS+4
        pass order+4*HANDLERS
        mov $0xf4, %edx
        out %al, %dx
6:      hlt
        jmp 6b

on_nmi: movl $1, told
        IRET

        .balign 64
handlers:
        .rept 2 * HANDLERS
        .balign 64
        test %esi, %esi
        jz 7f
#if BITS == 64
        addq $2, (%rsp)
#else
        addl $2, (%esp)
#endif
7:      IRET
        .endr
        .balign 64
another:
        test %esi, %esi
        jz 8f
#if BITS == 64
        addq $2, (%rsp)
#else
        addl $2, (%esp)
#endif
8:      IRET

        .data
        .balign 8192
elsewhere:
        .long 0, 0
left:   .long 0
told:   .long 0
order:
        .long another
        .set n, 0
        .rept 2 * HANDLERS
        .long handlers + 64 * n
        .set n, n + 1
        .endr
        .text
